"""`windtunnel export`: a plan as the configuration of another program."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from simcore.commands.describe import PlanPath
from simcore.commands.output import note


def export(
    plan: PlanPath,
    to: Annotated[Literal["verl"], typer.Option("--to", help="The program that reads it.")] = "verl",
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it here.")] = None,
) -> None:
    """Write the placement and parallelism of a plan for another program; what it cannot say is said in comments."""
    import sys

    from costmodels.files import write_atomically
    from simcore.hybridflow.verl import verl_config
    from simcore.plan import Plan

    assert to == "verl"
    text = verl_config(Plan.load(plan))
    if output is None:
        sys.stdout.write(text)
        return
    write_atomically(output, text)
    note(f"wrote {output}")
