"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Scenario = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario file (YAML).", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. cluster.nodes=4; may be repeated."),
]
Folders = Annotated[
    list[Path] | None,
    typer.Option("--catalog", metavar="FOLDER", help="Look here first for devices, links and stores; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="Use this plan instead of planning.")]
