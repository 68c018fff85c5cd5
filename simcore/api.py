"""The commands as Python calls, for notebooks and scripts: objects and frames instead of text.

from simcore import api as windtunnel
scenario = windtunnel.load("scenarios/quickstart.yaml", ["workload.iterations=3"])
windtunnel.run(scenario).report.metrics["iteration_s"]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcore.backend import open_backend
from simcore.compare import Comparison
from simcore.compare import compare as _compare
from simcore.errors import CannotRun, InputError, Problem
from simcore.plan import Plan
from simcore.progress import Progress, part
from simcore.reporting.report import Report, report
from simcore.scenario import Scenario
from simcore.scenario import load as _load
from simcore.sweep import sweep as _sweep
from simcore.trace import Trace
from simcore.validate import validate as _validate

if TYPE_CHECKING:
    import pandas as pd

Source = Scenario | str | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was decided, what happened, and what it amounts to."""

    scenario: Scenario
    plan: Plan
    trace: Trace
    report: Report


def load(source: Source, overrides: Sequence[str] = (), folders: Sequence[str | Path] = ()) -> Scenario:
    """A scenario from its file; one that is loaded already is returned as it is and takes no changes."""
    if not isinstance(source, Scenario):
        return _load(source, overrides, folders)
    if overrides or folders:
        raise InputError(
            "a loaded scenario", [Problem("overrides", repr(list(overrides)), "none", "Load it with them.")]
        )
    return source


def load_plan(path: str | Path) -> Plan:
    """A plan from its file. Raises `InputError` for a file that cannot be read, `PlanError` for one that is no plan."""
    path = Path(path)
    wanted = "a plan written by `windtunnel plan`"
    try:
        return Plan.load(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read", [Problem("plan", str(error.strerror), wanted)]) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text", [Problem("plan", str(path), wanted)]) from error


def plan(source: Source, overrides: Sequence[str] = (), *, progress: Progress | None = None) -> Plan:
    """What the scenario's planner decides."""
    return load(source, overrides).plan(progress)


def check(source: Source, overrides: Sequence[str] = (), *, backend: str = "sim", plan: Plan | None = None) -> Plan:
    """The scenario's plan, or `plan`, if it could run on a backend.

    Raises what planning raises; `PlanError` for a plan that does not suit the scenario's workload, `CannotRun` for what the backend
    finds, each with all of it.
    """
    scenario = load(source, overrides)
    chosen = scenario.settled(plan)
    found = open_backend(backend, scenario).check(chosen)
    if found:
        raise CannotRun(f"plan {chosen.name!r} cannot run ({backend})", found)
    return chosen


def run(
    source: Source,
    overrides: Sequence[str] = (),
    *,
    backend: str = "sim",
    plan: Plan | None = None,
    progress: Progress | None = None,
) -> Run:
    """Plan (or take `plan`), run on a backend, report."""
    scenario = load(source, overrides)
    chosen = scenario.settled(plan, part(progress, 0.0, 0.2))
    trace = open_backend(backend, scenario).run(chosen, progress=part(progress, 0.2, 1.0))
    return Run(scenario=scenario, plan=chosen, trace=trace, report=report(chosen, trace))


def compare(
    source: Source, overrides: Sequence[str] = (), *, repeat: int = 1, progress: Progress | None = None
) -> Comparison:
    """Simulated and measured, side by side, of one plan."""
    return _compare(load(source, overrides), repeat=repeat, progress=progress)


def sweep(path: str | Path, over: Mapping[str, Sequence[Any]], **options: Any) -> "pd.DataFrame":
    """A frame with a row for each combination of `over`; options as in `simcore.sweep.sweep`."""
    return _sweep(path, over, **options)


def validate(table: str, data: str | Path, **options: Any) -> dict[str, Any]:
    """How far a table's predictions are from the measurements in `data`; options as in `simcore.validate.validate`."""
    return _validate(table, data, **options)


def catalog(kind: str = "devices", folders: Sequence[str | Path] = ()) -> "pd.DataFrame":
    """Devices, links or stores as a frame."""
    from costmodels.catalog import KINDS, Catalog

    for known in KINDS:
        if known == kind:
            return Catalog([Path(f) for f in folders]).frame(known)
    raise InputError("unknown kind of entry", [Problem("kind", repr(kind), ", ".join(KINDS))])
