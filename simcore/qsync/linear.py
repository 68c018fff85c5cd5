"""Mixed-integer linear programs built from expressions, solved by HiGHS."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

import numpy as np

from simcore.qsync.local import Floats

Expression = dict[int, float]
"""Coefficients by column; constants are coefficients of `ONE`."""

ONE, LATE, EXCESS = 0, 1, 2
"""Columns of every program: the constant 1, and by how much limits of time and memory are missed, 0 unless it is set free."""

SPAN = 1e9
"""Of coefficients in an objective; what is smaller than the largest by more is below the solver's tolerances."""


def add(expression: Expression, factor: float, term: Expression) -> None:
    """`expression` += factor x term."""
    if factor:
        for column, coefficient in term.items():
            expression[column] = expression.get(column, 0.0) + float(factor * coefficient)


def total(terms: Iterable[tuple[float, Expression]]) -> Expression:
    """Sum of factors times expressions."""
    found: Expression = {}
    for factor, term in terms:
        add(found, factor, term)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """Values of the columns, None where none were found; no values that keep the rows have a smaller objective than `bound`."""

    status: Literal["optimal", "stopped", "infeasible"]
    values: Floats | None
    bound: float

    def value(self, expression: Expression) -> float:
        """What an expression comes to."""
        assert self.values is not None
        return float(sum(coefficient * self.values[column] for column, coefficient in expression.items()))


@dataclass
class Program:
    """Columns are at least 0, rows lie between two numbers."""

    upper: list[float] = field(default_factory=lambda: [1.0, 0.0, 0.0])
    whole: list[bool] = field(default_factory=lambda: [False] * 3)
    rows: list[tuple[Expression, float, float]] = field(default_factory=list)

    def column(self, upper: float = 1.0, *, whole: bool = False) -> Expression:
        """A new variable."""
        self.upper.append(upper)
        self.whole.append(whole)
        return {len(self.upper) - 1: 1.0}

    def row(self, expression: Expression, low: float, high: float) -> None:
        """low <= expression <= high."""
        self.rows.append((expression, low, high))

    def solve(self, cost: Expression, *, seconds: float, gap: float) -> Solved:
        """Values that minimise `cost`, whose coefficients are not negative.

        HiGHS stops at an absolute gap of 1e-6, so the cost is scaled by what it is without whole numbers.
        """
        stop = monotonic() + seconds
        constant = cost.get(ONE, 0.0)
        varying = {column: c for column, c in cost.items() if column != ONE and c}
        relaxed = self._run(varying, whole=False, seconds=seconds, gap=gap)
        if relaxed.status == 2:
            return Solved("infeasible", None, np.inf)
        largest = max(varying.values(), default=1.0)
        least = relaxed.fun if relaxed.x is not None else 0.0
        scale = 1e3 / max(least, largest * 1e3 / SPAN)
        scaled = {column: c * scale for column, c in varying.items()}
        found = self._run(scaled, whole=True, seconds=max(stop - monotonic(), 0.1), gap=gap)
        if found.status == 2:
            return Solved("infeasible", None, np.inf)
        bound = found.mip_dual_bound if found.mip_dual_bound is not None else found.fun
        if bound is None or not np.isfinite(bound):
            bound = 0.0
        bound = constant + max(bound / scale, 0.0)
        return Solved("optimal" if found.status == 0 else "stopped", found.x, bound)

    def least(self, column: int, *, free: int, seconds: float) -> float:
        """By how much a limit is missed at least where the other limit, `free`, may be missed."""
        found = self._run({column: 1.0}, whole=True, seconds=seconds, gap=1e-6, free=(column, free))
        bound = found.mip_dual_bound if found.mip_dual_bound is not None else found.fun
        return 0.0 if bound is None else max(bound, 0.0)

    def _run(self, cost: Expression, *, whole: bool, seconds: float, gap: float, free: tuple[int, ...] = ()) -> Any:
        """HiGHS's answer: status 0 is optimal, 1 stopped, 2 infeasible."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        n = len(self.upper)
        objective, lower, upper = np.zeros(n), np.zeros(n), np.array(self.upper)
        objective[list(cost)] = list(cost.values())
        lower[ONE] = 1.0
        upper[list(free)] = np.inf
        starts = np.cumsum([0, *(len(expression) for expression, _, _ in self.rows)])
        columns = [column for expression, _, _ in self.rows for column in expression]
        values = [value for expression, _, _ in self.rows for value in expression.values()]
        matrix = csr_array((np.array(values), np.array(columns, dtype=np.int32), starts), shape=(len(self.rows), n))
        limits = LinearConstraint(matrix, [low for _, low, _ in self.rows], [high for _, _, high in self.rows])
        for presolve in (True, False):
            found = milp(
                objective,
                integrality=np.array(self.whole) * int(whole),
                bounds=Bounds(lower, upper),
                constraints=limits if self.rows else (),
                options={"time_limit": seconds, "mip_rel_gap": gap, "presolve": presolve},
            )
            if found.status in (0, 1, 2):  # presolve may not say whether it is infeasible or unbounded
                return found
        raise AssertionError(f"a bounded program without an answer: {found.message}")
