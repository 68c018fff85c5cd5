"""Fit of positive parameters that are shared at several levels: maximum a posteriori by damped Gauss-Newton steps.

Rows come in groups; within a group all rows have the same parameters, exp(prior + sum of the effects of the group's keys). An
effect is normal around zero with a deviation that depends on the level, so that a key with few rows stays close to what its
level's other keys have in common. Residuals are log(predicted / measured) with a pseudo-Huber (soft L1) loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.prediction import Floats

Ints = NDArray[np.int64]

Logs = Callable[[Mapping[str, Floats]], Floats]
"""(rows,) logarithms of predictions from (rows,) arrays of parameters."""


LONGEST = 0.7
"""Of one step, for the logarithm of a parameter."""

SMALLEST = 1e-3
"""Effects below are left out of the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`group` (rows,) numbers the groups, `keys` names each group's key at each level, `deviation` is by level and parameter."""

    logs: Logs
    measured: Floats  # (rows,) logarithms
    group: Ints
    keys: Sequence[Mapping[str, str]]
    typical: Mapping[str, float]
    deviation: Mapping[str, Mapping[str, float]]
    noise: float = 0.08


Effects = dict[str, dict[str, dict[str, float]]]
"""Level -> key -> parameter -> effect on its logarithm."""


def solve(problem: Problem, start: Effects | None = None, steps: int = 30) -> Effects:
    """Effects at the best point found from `start` (no effects) within `steps`."""
    columns, design, spread = _design(problem)
    x = np.array([(start or {}).get(level, {}).get(key, {}).get(name, 0.0) for level, key, name in columns])
    (cost, logs), damping = _cost(problem, design, spread, x), 1.0
    for _ in range(steps):
        hessian, gradient = _normal(problem, design, spread, x, logs)
        old = cost
        for _ in range(6):
            scaled = hessian + damping * np.diag(np.diag(hessian)) * 0.1
            step = np.clip(-np.linalg.solve(scaled, gradient), -LONGEST, LONGEST)
            cost, tried = _cost(problem, design, spread, x + step)
            if cost < old:
                break
            damping *= 4.0
        else:
            break
        x, logs, damping = x + step, tried, max(damping / 4.0, 1e-4)
        if old - cost < 1e-4 * cost:
            break
    found: Effects = {}
    for (level, key, name), effect in zip(columns, x, strict=True):
        if abs(effect) >= SMALLEST:
            found.setdefault(level, {}).setdefault(key, {})[name] = float(f"{effect:.6g}")
    return found


def _design(problem: Problem) -> tuple[list[tuple[str, str, str]], Floats, Floats]:
    """Columns (level, key, parameter); (groups, parameters, columns) of zeros and ones; each column's deviation."""
    columns = [
        (level, key, name)
        for level, deviations in problem.deviation.items()
        for key in dict.fromkeys(keys[level] for keys in problem.keys if level in keys)
        for name in deviations
    ]
    design = np.zeros((len(problem.keys), len(problem.typical), len(columns)))
    place = {name: i for i, name in enumerate(problem.typical)}
    for j, (level, key, name) in enumerate(columns):
        design[[keys.get(level) == key for keys in problem.keys], place[name], j] = 1.0
    return columns, design, np.array([problem.deviation[level][name] for level, _, name in columns])


def _values(problem: Problem, design: Floats, x: Floats) -> Floats:
    """(groups, parameters) logarithms."""
    base = np.log(np.array(list(problem.typical.values())))
    return np.asarray(base + design @ x)


def _predict(problem: Problem, values: Floats) -> Floats:
    rows = np.exp(values)[problem.group]
    return problem.logs({name: rows[:, i] for i, name in enumerate(problem.typical)})


def _cost(problem: Problem, design: Floats, spread: Floats, x: Floats) -> tuple[float, Floats]:
    logs = _predict(problem, _values(problem, design, x))
    z = (logs - problem.measured) / problem.noise
    loss = 2.0 * (np.sqrt(1.0 + z * z) - 1.0)
    return float(loss.sum() + ((x / spread) ** 2).sum()), logs


def _normal(problem: Problem, design: Floats, spread: Floats, x: Floats, logs: Floats) -> tuple[Floats, Floats]:
    """Gauss-Newton matrix and gradient. Parameters are constant in a group: one difference for each serves all its effects."""
    values = _values(problem, design, x)
    slopes = np.empty((len(logs), values.shape[1]))
    for i in range(values.shape[1]):
        shifted = values.copy()
        shifted[:, i] += 1e-3
        slopes[:, i] = (_predict(problem, shifted) - logs) / 1e-3 / problem.noise
    z = (logs - problem.measured) / problem.noise
    weight = 1.0 / np.sqrt(1.0 + z * z)
    hessian = np.diag(1.0 / spread**2)
    gradient = x / spread**2
    for g, chosen in enumerate(design):
        rows = problem.group == g
        used = np.flatnonzero(chosen.any(axis=0))
        s, part = slopes[rows], chosen[:, used]
        hessian[np.ix_(used, used)] += part.T @ ((s.T * weight[rows]) @ s) @ part
        gradient[used] += part.T @ (s.T @ (weight[rows] * z[rows]))
    return hessian, gradient
