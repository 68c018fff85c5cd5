"""How much each precision of each operator disturbs training: QSync's bi-directional indicator, and what it is compared with.

    Omega(operator, b) = gamma (L - d) forward(b) + d backward(b)

with d the operator's depth and L the model's. Rounding in the forward pass reaches the L - d operators above, and through the
loss the gradients of all of them; rounding in the backward pass reaches the gradients of the d operators below. gamma weighs how
the loss passes noise of its input on to gradients. Omega of float32 is 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from costmodels.errors import DataError, Problem
from costmodels.operator_graph import Operator, OperatorGraph
from costmodels.precision import PRECISIONS, allowed, flow_of
from costmodels.precision_error import (
    LEVELS,
    MANTISSA,
    product_variance,
    released_exponent,
    released_fixed,
    released_float,
    rounding_variance,
)
from simcore.qsync.statistics import OperatorStatistics, Statistics, contracted

Indicator = Literal["theory", "relative", "released", "hess", "wvar", "random"]
Table = dict[str, dict[str, float]]
"""By operator and precision."""

GAMMA = 4.0
"""Default of the released code."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What one precision of one operator adds, forward and backward."""

    forward: float
    backward: float


def sensitivities(
    graph: OperatorGraph,
    statistics: Statistics,
    has: tuple[str, ...],
    indicator: Indicator = "theory",
    *,
    gamma: float = GAMMA,
    seed: int = 0,
) -> Table:
    """Omega of each precision that a device with `has` allows each adjustable operator.

    theory: variances of products of stochastically rounded operands (`noise_of`). relative: the same over the squared norms that
    the products have, so that scaling a weight changes nothing. released: as QSync's code computes it. hess, wvar: of weights
    alone. random: a number from `seed` for each operator, times the format's squared step. Raises `DataError` where `statistics`
    lack an operator, or what the indicator needs.
    """
    statistics.check(graph)
    adjustable = [o for o in graph if allowed(o, has)]
    _check_fields(adjustable, statistics, indicator, has)
    drawn = dict(zip((o.name for o in adjustable), np.random.default_rng(seed).random(len(adjustable)), strict=True))
    found: Table = {}
    for operator in adjustable:
        found[operator.name] = {}
        for precision in allowed(operator, has):
            own, back = statistics.operators[operator.name], flow_of(operator, precision, has).backward
            if precision == "float32":
                omega = 0.0
            elif indicator == "random":
                omega = float(drawn[operator.name]) * relative_step(precision) ** 2
            elif indicator in ("hess", "wvar"):
                omega = _of_weight(own, precision, indicator)
            else:
                noise = _noise(operator, graph, own, precision, back, indicator)
                omega = gamma * (graph.depth - operator.depth) * noise.forward + operator.depth * noise.backward
            found[operator.name][precision] = omega
    return found


def _noise(
    operator: Operator, graph: OperatorGraph, own: OperatorStatistics, precision: str, back: str, indicator: Indicator
) -> Noise:
    if indicator == "released":
        return released_noise(own, precision, back)
    return noise_of(operator, graph, own, precision, back, relative=indicator == "relative")


def noise_of(
    operator: Operator,
    graph: OperatorGraph,
    own: OperatorStatistics,
    precision: str,
    backward: str,
    *,
    relative: bool = False,
) -> Noise:
    """Variance, summed over elements, of the result z = v w (forward) and of the weight's gradient v^T g (backward).

    Both are products with as many multiplications, elements of z times the length of their sums, so `product_variance` gives both:
    forward from rounding v and w, backward from v as the forward pass kept it and g in the precision of the backward pass. An
    embedding multiplies by ones: its rows are rounded, and its gradients added in float32. `relative` divides each by what the
    product's squared norm is if its factors are independent.
    """
    terms = own.D_vv * contracted(operator, graph)
    power_v, power_w, power_g = own.norm_v**2 / own.D_v, own.norm_w**2 / own.D_w, own.norm_g**2 / own.D_vv
    looked_up = operator.kind == "embedding"
    var_v = 0.0 if looked_up else rounding_variance(precision, own.amax_v, power_v**0.5)
    var_w = rounding_variance(precision, own.amax_w, power_w**0.5)
    var_g = rounding_variance(backward, own.amax_g, power_g**0.5)
    forward = product_variance(terms, var_v, power_v, var_w, power_w)
    back = product_variance(terms, var_v, power_v, var_g, power_g)
    if relative:
        return Noise(_over(forward, terms * power_v * power_w), _over(back, terms * power_v * power_g))
    return Noise(forward, back)


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def released_noise(own: OperatorStatistics, precision: str, backward: str) -> Noise:
    """As the released code computes it: plain norms, exponents not as powers of two, the norm of the weight's gradient for g.

    The code has int8 and float16; other floating-point formats take float16's formula with their own mantissa.
    """
    assert own.norm_dw is not None
    e_v, e_w = released_exponent((own.norm_v / own.D_v) ** 0.5), released_exponent((own.norm_w / own.D_w) ** 0.5)
    if precision == "int8":
        forward = released_fixed(own.norm_w, own.S_v, own.D_v, own.norm_v, own.S_w, own.D_w)
        kept = own.norm_dw * own.S_v**2 * own.D_v / 6
        step = 2.0 ** (e_v - MANTISSA.get(backward, np.inf) + 1)
        return Noise(forward, kept + own.norm_v * step**2 * own.D_vv / 6)
    e_g = released_exponent(own.amax_g)
    forward = released_float(precision, (own.norm_w, own.D_v, e_v), (own.norm_v, own.D_w, e_w))
    back = released_float(precision, (own.norm_dw, own.D_v, e_v), (own.norm_v, own.D_vv, e_g))
    return Noise(forward, back)


def relative_step(precision: str) -> float:
    """Step of a format relative to the values it holds; int8's to the largest."""
    return 1 / LEVELS if precision == "int8" else 2.0 ** -MANTISSA[precision]


def _of_weight(own: OperatorStatistics, precision: str, indicator: Indicator) -> float:
    """hess: curvature times the squared distance of the rounded weight, as HAWQ weighs it; wvar: shift of its mean magnitude."""
    if indicator == "wvar":
        return own.shift[precision]
    assert own.curvature is not None
    return own.curvature * own.D_w * rounding_variance(precision, own.amax_w, own.norm_w / own.D_w**0.5)


def _check_fields(
    operators: list[Operator], statistics: Statistics, indicator: Indicator, has: tuple[str, ...]
) -> None:
    """Everything that this indicator needs was collected."""
    problems = []
    for operator in operators:
        lacking = _lacking(operator, statistics.operators[operator.name], indicator, has)
        if lacking:
            advice = f"Collect statistics with weights at hand, or choose another indicator than {indicator}."
            problems.append(Problem(f"statistics.operators.{operator.name}.{lacking}", "nothing", "a number", advice))
    if problems:
        raise DataError(f"statistics without what the indicator {indicator} reads", problems[:20])


def _lacking(operator: Operator, own: OperatorStatistics, indicator: Indicator, has: tuple[str, ...]) -> str:
    if indicator == "released" and own.norm_dw is None:
        return "norm_dw"
    if indicator == "hess" and own.curvature is None:
        return "curvature"
    narrow = [p for p in allowed(operator, has) if p != "float32"]
    if indicator == "wvar" and any(p not in own.shift for p in narrow):
        return f"shift ({', '.join(p for p in narrow if p not in own.shift)})"
    return ""


def ladder(omega: Mapping[str, float]) -> tuple[str, ...]:
    """Precisions from the most to the least disturbing; of equal ones the wider is later."""
    return tuple(sorted(omega, key=lambda p: (-omega[p], PRECISIONS.index(p))))
