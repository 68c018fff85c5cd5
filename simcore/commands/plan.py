"""`windtunnel plan`: what the planner decides, as a file that both backends run."""

from pathlib import Path
from typing import Annotated

import typer

from simcore.commands.options import AsJson, Folders, Scenario, Sets
from simcore.commands.output import note, show, show_json


def plan(
    scenario: Scenario,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the plan here.")] = None,
    sets: Sets = None,
    catalog: Folders = None,
    as_json: AsJson = False,
) -> None:
    """Decide, and write the decision as a plan."""
    from simcore.progress import shown
    from simcore.reporting.views import plan_view
    from simcore.scenario import load

    loaded = load(scenario, sets or (), catalog or ())
    with shown(f"plan {loaded.name}") as progress:
        made = loaded.plan(progress)
        if output is not None:
            made.save(output)
    if as_json:
        fields = {"plan": made.name, "plan_digest": made.digest, "ranks": made.n_ranks, "tasks": len(made.tasks)}
        show_json({**fields, "decisions": made.decisions, "workload": made.workload, "memory_B": made.memory_B})
    else:
        show(plan_view(made))
    if output is not None:
        note(f"wrote {output}")
