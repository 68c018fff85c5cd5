"""`windtunnel validate`: a table's predictions beside measurements."""

from pathlib import Path
from typing import Annotated

import typer

from simcore.commands.options import AsJson, Folders
from simcore.commands.output import note, show, show_json


def validate(
    table: Annotated[str | None, typer.Argument(metavar="TABLE", help="Which table of predictions.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="The measurements; without it those that are shipped.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write every row with its prediction (.csv or .parquet)."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every table, on the shipped measurements, into a scoreboard.")
    ] = False,
    scoreboard: Annotated[Path, typer.Option("--scoreboard", metavar="FILE", help="Where --all writes it.")] = Path(
        "costmodels/SCOREBOARD.md"
    ),
    catalog: Folders = None,
    as_json: AsJson = False,
) -> None:
    """Predict the rows of a measurements file and print how far off the predictions are, beside plain roofline."""
    from simcore.errors import InputError, Problem
    from simcore.progress import shown
    from simcore.reporting.views import errors_view
    from simcore.tables import names
    from simcore.validate import validate as predict

    if (table is None) != everything or (everything and (data is not None or out is not None)):
        given = (
            "both"
            if table is not None
            else "neither TABLE nor --all"
            if not everything
            else "--all with --data or --out"
        )
        allowed = "a TABLE, or --all by itself"
        raise InputError("nothing to validate", [Problem("TABLE", given, allowed, f"Tables: {', '.join(names())}.")])
    if table is None:
        _all(scoreboard, as_json=as_json)
        return
    with shown(f"validate {table}") as progress:
        found = predict(table, data, folders=[*(catalog or ()), Path("calibration")], out=out, progress=progress)
    if as_json:
        show_json(found)
    else:
        show(errors_view(found))
    if out is not None:
        note(f"wrote {out}")


def _all(target: Path, *, as_json: bool) -> None:
    from costmodels.files import write_atomically
    from simcore.progress import shown
    from simcore.scoreboard import every_table, markdown

    with shown("validate") as progress:
        found = every_table(progress)
        write_atomically(target, markdown(found))
    if as_json:
        show_json(found)
    note(f"wrote {target}")
