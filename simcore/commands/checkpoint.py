"""`windtunnel checkpoint`: look at, verify, compare, convert and remove checkpoints."""

from importlib import import_module
from typing import Annotated, Any

import typer

from simcore.commands.options import AsJson
from simcore.commands.output import note, show, show_json

checkpoint = typer.Typer(
    help="Inspect, verify, compare, convert and remove checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Where = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="A folder of checkpoints (the last one is meant), one of them, or an address of fsspec."
    ),
]


@checkpoint.command()
def inspect(path: Where, as_json: AsJson = False) -> None:
    """Print what a checkpoint holds, how large it is and which rank wrote what."""
    found = _tools().summary(path)
    if as_json:
        show_json(found)
        return
    from simcore.reporting.checkpoints import summary_view

    show(summary_view(found))


@checkpoint.command()
def verify(path: Where, as_json: AsJson = False) -> None:
    """Read everything and compare checksums; exit code 2 if anything is damaged."""
    from simcore.progress import shown

    with shown("verify") as progress:
        found = _tools().verified(path, progress)
    if as_json:
        show_json(found)
    else:
        from simcore.reporting.checkpoints import size

        note(f"{found['name']}: {found['shards']} shards, {size(found['nbytes'])}, every checksum right")


@checkpoint.command()
def diff(first: Where, second: Where, as_json: AsJson = False) -> None:
    """List tensors and values that differ, bit by bit, however each checkpoint is cut."""
    from simcore.progress import shown

    with shown("diff") as progress:
        found = _tools().differences(first, second, progress)
    if as_json:
        show_json(found)
        return
    from simcore.reporting.checkpoints import difference_view

    if found:
        show(difference_view(found))
    else:
        note("the same")


@checkpoint.command()
def convert(
    source: Where,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="What to write: a folder; for windtunnel also an address of fsspec.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="windtunnel, safetensors (tensors only) or dcp (torch).")
    ] = "windtunnel",
    step: Annotated[int, typer.Option("--step", help="Of the result, where the source does not say.")] = 0,
) -> None:
    """Convert between this format, Hugging Face safetensors and torch's distributed checkpoints, found by what PATH holds.

    Nothing in a torch checkpoint is executed: its metadata is read by an unpickler that knows only the classes of that format.
    """
    from simcore.progress import shown

    with shown("convert") as progress:
        found = _tools().convert(source, target, to, step, progress)
    note(f"wrote {found.written}")
    for what in found.left_out:
        note(f"left out: {what}")


@checkpoint.command()
def prune(
    path: Where,
    keep: Annotated[int, typer.Option("--keep", metavar="N", help="How many checkpoints stay: the last ones.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove all but the last N checkpoints, and leftovers of saves that were killed. Run it while nobody saves."""
    found = _tools().pruned(path, keep, dry_run=dry_run)
    if as_json:
        show_json(found)
        return
    for name in found:
        note(f"{'would remove' if dry_run else 'removed'} {name}")


def _tools() -> Any:
    from simcore.errors import InputError, Problem

    try:
        return import_module("real.checkpoint.tools")
    except ModuleNotFoundError as missing:
        advice = "pip install 'windtunnel[real]'"
        problem = Problem("checkpoint", f"no {missing.name}", "an installation with it", advice)
        raise InputError(f"checkpoints need {missing.name}", [problem]) from missing
