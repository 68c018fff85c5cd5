"""`windtunnel check`: whether a scenario's plan, or one from a file, could run, without running it."""

from typing import Annotated

import typer

from simcore.commands.options import AsJson, Folders, PlanFile, Scenario, Sets
from simcore.commands.output import show, show_json


def check(
    scenario: Scenario,
    backend: Annotated[str, typer.Option("--backend", metavar="sim|real", help="Where it would run.")] = "sim",
    plan: PlanFile = None,
    sets: Sets = None,
    catalog: Folders = None,
    as_json: AsJson = False,
) -> None:
    """Say everything that keeps a scenario or a plan from running, and what to change."""
    from simcore import api

    loaded = api.load(scenario, sets or (), catalog or ())
    given = api.load_plan(plan) if plan is not None else None
    checked = api.check(loaded, backend=backend, plan=given)
    if as_json:
        show_json({"plan": checked.name, "plan_digest": checked.digest, "ranks": checked.n_ranks, "backend": backend})
    else:
        show(f"{checked.name}: {checked.n_ranks} ranks, nothing stands in the way ({backend})")
