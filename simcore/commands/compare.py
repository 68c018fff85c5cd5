"""`windtunnel compare`: the same plan simulated and for real, line by line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simcore.commands.options import AsJson, Folders, PlanFile, Sets
from simcore.commands.output import show, show_json

if TYPE_CHECKING:
    from simcore.compare import Comparison


def compare(
    scenario: Annotated[Path | None, typer.Argument(metavar="SCENARIO", help="A scenario file (YAML).")] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, metavar="N", help="Run for real N times; medians count.")
    ] = 1,
    plan: PlanFile = None,
    traces: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--traces", metavar="SIM REAL", help="Compare two saved traces; the plan lies beside the first."),
    ] = None,
    sets: Sets = None,
    catalog: Folders = None,
    as_json: AsJson = False,
) -> None:
    """Run a plan in both worlds and print metric, simulated, real, error."""
    from simcore.errors import InputError, Problem
    from simcore.reporting.views import comparison_view

    if (scenario is None) == (traces is None):
        raise InputError(
            "nothing to compare", [Problem("SCENARIO", "none or too much", "either a scenario or --traces")]
        )
    if traces is not None:
        found = _saved(*traces, plan)
    else:
        assert scenario is not None
        found = _fresh(scenario, repeat, plan, sets or [], catalog or [])
    if as_json:
        show_json(found.to_dict())
    else:
        show(comparison_view(found))


def _fresh(scenario: Path, repeat: int, plan: Path | None, sets: list[str], catalog: list[Path]) -> "Comparison":
    from simcore.api import load_plan
    from simcore.compare import compare
    from simcore.progress import shown
    from simcore.scenario import load

    loaded = load(scenario, sets, catalog)
    given = load_plan(plan) if plan is not None else None
    with shown(f"compare {loaded.name}") as progress:
        return compare(loaded, plan=given, repeat=repeat, progress=progress)


def _saved(simulated: Path, measured: Path, plan: Path | None) -> "Comparison":
    from simcore.api import load_plan
    from simcore.compare import compare_traces, same_plan
    from simcore.reporting.perfetto import read_trace

    a, b = read_trace(simulated), read_trace(measured)
    same_plan(a.plan_digest, b.plan_digest)
    return compare_traces(load_plan(plan if plan is not None else simulated.parent / "plan.json"), a, [b])
