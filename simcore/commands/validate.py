"""`windtunnel validate`: a table's predictions beside measurements."""

from pathlib import Path
from typing import Annotated

import typer

from simcore.commands.options import AsJson, Folders
from simcore.commands.output import note, show, show_json


def validate(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Which table of predictions.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="The measurements.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write every row with its prediction.")
    ] = None,
    catalog: Folders = None,
    as_json: AsJson = False,
) -> None:
    """Predict the rows of a measurements file and print how far off the predictions are."""
    from simcore.progress import shown
    from simcore.report_views import errors_view
    from simcore.validate import validate as predict

    with shown(f"validate {table}") as progress:
        found = predict(table, data, folders=[*(catalog or ()), Path("calibration")], out=out, progress=progress)
    if as_json:
        show_json(found)
    else:
        show(errors_view(found))
    if out is not None:
        note(f"wrote {out}")
