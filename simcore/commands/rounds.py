"""`windtunnel rounds`: many rounds of federated training, who takes part and what they cost."""

from pathlib import Path
from typing import Annotated

import typer

from simcore.commands.options import Folders, Scenario, Sets
from simcore.commands.output import note


def rounds(
    scenario: Scenario,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="How many; default: as many as the workload says.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.csv", help="Write a row for each round here.")
    ] = None,
    sets: Sets = None,
    catalog: Folders = None,
) -> None:
    """Play rounds of a federated scenario with all draws and rules, and print what each amounts to."""
    from costmodels.files import write_atomically
    from simcore import api
    from simcore.federated.outcome import frame, summary
    from simcore.federated.running import federation_of
    from simcore.progress import shown

    loaded = api.load(scenario, sets or (), catalog or ())
    federation = federation_of(loaded)
    wanted = count if count is not None else federation.workload.rounds
    found = []
    with shown(f"rounds {loaded.name}") as progress:
        for i, outcome in enumerate(federation.rounds(wanted)):
            found.append(outcome.without_mixing())
            if progress is not None:
                progress((i + 1) / wanted, f"round {i + 1} of {wanted}")
    table = frame(found)
    typer.echo(table.to_string(index=False, max_rows=20, float_format=lambda x: f"{x:.4g}"))
    typer.echo(summary(table))
    if out is not None:
        write_atomically(out, table.to_csv(index=False))
        note(f"wrote {out}")
