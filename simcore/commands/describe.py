"""`windtunnel describe`: which model of an RLHF plan is on which GPU in which stage, memory by kind, idle time by cause."""

from pathlib import Path
from typing import Annotated

import typer

from simcore.commands.options import AsJson
from simcore.commands.output import show, show_json

PlanPath = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json of RLHF.", show_default=False)]


def describe(plan: PlanPath, as_json: AsJson = False) -> None:
    """Say where the models of an RLHF plan are, what fills each GPU, and why it is idle."""
    from dataclasses import asdict

    from simcore.hybridflow.describe import describe as described
    from simcore.plan import Plan
    from simcore.reporting.rlhf_view import description_view

    found = described(Plan.load(plan))
    if as_json:
        show_json(asdict(found))
    else:
        show(description_view(found))
