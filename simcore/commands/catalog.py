"""`windtunnel catalog`: the devices, links and stores that scenarios can name."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from simcore.commands.options import AsJson, Folders
from simcore.commands.output import show, show_json


def catalog(
    kind: Annotated[str | None, typer.Argument(metavar="[devices|links|stores]", help="One kind of entry.")] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One entry, with the source of each number.")
    ] = None,
    folders: Folders = None,
    as_json: AsJson = False,
) -> None:
    """List catalogue entries, or show one with its sources."""
    from dataclasses import asdict
    from pathlib import Path

    from costmodels.catalog import KINDS, Catalog
    from simcore.errors import InputError, Problem
    from simcore.reporting.views import catalog_view, nested_view
    from simcore.validation import suggestion

    kinds = [known for known in KINDS if kind in (known, None)]
    if not kinds:
        raise InputError(
            "unknown kind of entry", [Problem("kind", repr(kind), ", ".join(KINDS), suggestion(kind, KINDS))]
        )
    listing = Catalog([*(folders or ()), Path("calibration")])
    finders: dict[str, Callable[[str], Any]] = {
        "devices": listing.device,
        "links": listing.link,
        "stores": listing.store,
    }
    if name is not None:
        entry = asdict(finders[kinds[0]](name))
        show_json(entry) if as_json else show(nested_view(name, entry))
        return
    entries = {known: [asdict(finders[known](each)) for each in listing.names(known)] for known in kinds}
    show_json(entries) if as_json else show(catalog_view(entries))
