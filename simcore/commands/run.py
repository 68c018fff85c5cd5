"""`windtunnel run`: plan, run on a backend, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simcore.commands.options import AsJson, Folders, PlanFile, Scenario, Sets
from simcore.commands.output import note, show, show_json

if TYPE_CHECKING:
    from simcore.api import Run


def run(
    scenario: Scenario,
    backend: Annotated[
        str, typer.Option("--backend", metavar="sim|real", help="Simulate, or run on this machine.")
    ] = "sim",
    plan: PlanFile = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write plan, trace and report here.")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Also draw timeline.png in the --out folder.")] = False,
    sets: Sets = None,
    catalog: Folders = None,
    as_json: AsJson = False,
) -> None:
    """Play a plan and report where the time and the memory go."""
    from simcore import api
    from simcore.errors import InputError, Problem
    from simcore.progress import part, shown
    from simcore.reporting.text import report_view

    if plot and out is None:
        raise InputError(
            "nowhere to draw", [Problem("--plot", "no --out", "--out DIR", "The picture is written there.")]
        )
    loaded = api.load(scenario, sets or (), catalog or ())
    given = api.load_plan(plan) if plan is not None else None
    with shown(f"{backend} {loaded.name}") as progress:
        done = api.run(loaded, backend=backend, plan=given, progress=part(progress, 0.0, 0.9))
        if out is not None:
            write_run(done, out, plot=plot)
    if as_json:
        show_json(done.report.to_dict())
    else:
        show(report_view(done.report))
    if out is not None:
        note(f"wrote {out}: plan.json, trace.json.gz, report.json, report.txt" + (", timeline.png" if plot else ""))


def write_run(done: "Run", out: Path, *, plot: bool) -> None:
    """The files of a run; each appears whole or not at all, the report last."""
    from costmodels.files import write_atomically
    from simcore.reporting.perfetto import write_trace
    from simcore.reporting.text import as_text, report_view

    done.plan.save(out / "plan.json")
    write_trace(out / "trace.json.gz", done.trace, done.plan)
    if plot:
        from simcore.reporting.timeline import draw

        draw(done.plan, done.trace, out / "timeline.png")
    write_atomically(out / "report.txt", as_text(report_view(done.report)))
    write_atomically(out / "report.json", done.report.to_json())
