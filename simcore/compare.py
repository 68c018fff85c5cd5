"""One plan, two worlds: simulated and measured, metric by metric and part by part."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from simcore.backend import Backend, open_backend
from simcore.errors import Incomparable, Problem
from simcore.plan import Plan
from simcore.progress import Progress, part
from simcore.reporting.report import Report, report
from simcore.trace import Trace

if TYPE_CHECKING:
    from simcore.scenario import Scenario

Row = Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`metrics` and `parts_s` map names to {simulated, measured, error}; error is simulated / measured - 1.

    With several runs, `measured` is the median of them and `spread` how far iteration times lay apart: (max - min) / median.
    """

    plan: str
    plan_digest: str
    path: str
    runs: int
    spread: float | None
    metrics: Mapping[str, Row]
    parts_s: Mapping[str, Row]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the keys are stable."""
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def compare(
    scenario: "Scenario",
    *,
    plan: Plan | None = None,
    repeat: int = 1,
    progress: Progress | None = None,
    backends: Callable[[str, "Scenario"], Backend] = open_backend,
) -> Comparison:
    """Plan once (or take `plan`), simulate it, run it `repeat` times for real. Raises `CannotRun` before anything runs."""
    chosen = scenario.settled(plan, part(progress, 0.0, 0.1))
    simulator, machine = backends("sim", scenario), backends("real", scenario)
    simulated = simulator.run(chosen, progress=part(progress, 0.1, 0.2))
    measured = []
    for i in range(repeat):
        step = 0.8 / repeat
        measured.append(machine.run(chosen, progress=part(progress, 0.2 + i * step, 0.2 + (i + 1) * step)))
    return compare_traces(chosen, simulated, measured)


def compare_traces(plan: Plan, simulated: Trace, measured: Sequence[Trace]) -> Comparison:
    """Raises `Incomparable` unless all traces are of one plan, and that plan is `plan`."""
    for trace in measured:
        same_plan(simulated.plan_digest, trace.plan_digest)
    return compare_reports(report(plan, simulated), [report(plan, trace) for trace in measured])


def compare_reports(simulated: Report, measured: Sequence[Report]) -> Comparison:
    """As `compare_traces`, from reports."""
    assert measured, "a comparison needs at least one measured run"
    for other in measured:
        same_plan(simulated.plan_digest, other.plan_digest)
    times = [t for r in measured if (t := r.metrics["iteration_s"]) is not None]
    return Comparison(
        plan=simulated.plan,
        plan_digest=simulated.plan_digest,
        path=measured[0].path,
        runs=len(measured),
        spread=(max(times) - min(times)) / median(times) if len(times) > 1 else None,
        metrics=_rows(simulated.metrics, [r.metrics for r in measured]),
        parts_s=_rows(simulated.parts_s, [r.parts_s for r in measured]),
        warnings=tuple(dict.fromkeys(w for r in (simulated, *measured) for w in r.warnings)),
    )


def _rows(simulated: Mapping[str, float | None], measured: Sequence[Mapping[str, float | None]]) -> dict[str, Row]:
    return {name: _row(value, [m.get(name) for m in measured]) for name, value in simulated.items()}


def _row(simulated: float | None, found: Sequence[float | None]) -> Row:
    numbers = [value for value in found if value is not None]
    measured = median(numbers) if numbers else None
    error = simulated / measured - 1 if simulated is not None and measured else None
    return {"simulated": simulated, "measured": measured, "error": error}


def same_plan(a: str, b: str) -> None:
    """Raise `Incomparable` unless two digests are the same."""
    if a != b:
        problem = Problem("plan_digest", b, a, "Run both backends with one --plan file.")
        raise Incomparable("runs of different plans cannot be compared", [problem])
