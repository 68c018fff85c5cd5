"""`windtunnel calibrate`: measure this machine."""

from pathlib import Path
from typing import Annotated

import typer

from simcore.commands.options import AsJson
from simcore.commands.output import note, show, show_json


def calibrate(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where device, link and store files go.")] = Path(
        "calibration"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sizes and repetitions: rougher, and over sooner.")
    ] = False,
    operators: Annotated[
        list[str] | None,
        typer.Option(
            "--operators",
            metavar="SCENARIO|MODEL:BATCH",
            help="Instead, profile the operators of these (small_resnet:64) in every precision of this machine. Repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure computing, memory, collectives and storage here, and write them as catalogue entries."""
    from importlib import import_module

    from simcore.errors import InputError, Problem
    from simcore.progress import shown
    from simcore.reporting.views import nested_view

    try:
        measure = import_module("real.calibrate").calibrate
        profile = import_module("real.precision.profiling").calibrate_operators
    except ModuleNotFoundError as missing:
        problem = Problem(
            "calibrate", f"no {missing.name}", "an installation with it", "pip install 'windtunnel[real]'"
        )
        raise InputError(f"calibrating needs {missing.name}", [problem]) from missing
    with shown("calibrate") as progress:
        if operators:
            summary = profile(out, operators, quick=quick, progress=progress)
        else:
            summary = measure(out, quick=quick, progress=progress)
    if as_json:
        show_json(summary)
    else:
        show(nested_view("This machine", summary))
    note(f"wrote {out}")
