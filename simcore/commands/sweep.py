"""`windtunnel sweep`: a table over every combination of some values."""

from pathlib import Path
from typing import Annotated

import typer

from simcore.commands.options import AsJson, Folders, Scenario, Sets
from simcore.commands.output import note, records, show, show_json


def sweep(
    scenario: Scenario,
    over: Annotated[list[str], typer.Option("--over", metavar="PATH=V1,V2", help="Values to try; may be repeated.")],
    engine: Annotated[
        str, typer.Option("--engine", metavar="local|ray", help="Processes here, or a Ray cluster.")
    ] = "local",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes of the local engine.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write .parquet, .csv or .json.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG", help="Draw iteration time over the values.")
    ] = None,
    sets: Sets = None,
    catalog: Folders = None,
    as_json: AsJson = False,
) -> None:
    """Simulate every combination; a point that fails gets its error in a column."""
    from simcore import sweep as sweeping
    from simcore.progress import shown
    from simcore.reporting.views import sweep_view

    values = sweeping.parse_over(over)
    if output is not None:
        sweeping.check_suffix(output)
    with shown(f"sweep {scenario.stem}") as progress:
        frame = sweeping.sweep(
            scenario,
            values,
            engine=engine,
            workers=workers,
            overrides=sets or (),
            folders=catalog or (),
            progress=progress,
        )
    if output is not None:
        sweeping.save(frame, output)
    if plot is not None:
        from simcore.reporting.sweep_plot import draw

        draw(frame, list(values), plot)
    if as_json:
        show_json(records(frame))
    else:
        show(sweep_view(records(frame), list(values)))
    for path in (output, plot):
        if path is not None:
            note(f"wrote {path}")
