"""`windtunnel catalog`: the devices, links, stores and kernel libraries that scenarios can name."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from simcore.commands.options import AsJson, Folders
from simcore.commands.output import show, show_json

LIBRARIES = "libraries"


def catalog(
    kind: Annotated[
        str | None, typer.Argument(metavar="[devices|links|stores|libraries]", help="One kind of entry.")
    ] = None,
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

    if kind == LIBRARIES:
        _libraries(name, as_json)
        return
    kinds = [known for known in KINDS if kind in (known, None)]
    if not kinds:
        allowed = (*KINDS, LIBRARIES)
        raise InputError(
            "unknown kind of entry", [Problem("kind", repr(kind), ", ".join(allowed), suggestion(kind, allowed))]
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


def _libraries(name: str | None, as_json: bool) -> None:
    """Libraries of kernels, all or one, by the part of `engine.libraries` that takes them, and where they were measured."""
    from costmodels.libraries import NAMES, known, measured_on
    from simcore.errors import InputError, Problem
    from simcore.reporting.views import libraries_view
    from simcore.validation import suggestion

    found = {table: {each: measured_on(table, each) for each in known(table)} for table in NAMES}
    if name is not None:
        found = {table: {name: listed[name]} for table, listed in found.items() if name in listed}
    if not found:
        allowed = sorted({each for table in NAMES for each in known(table)})
        raise InputError(
            "unknown library", [Problem("name", repr(name), ", ".join(allowed), suggestion(name, allowed))]
        )
    show_json(found) if as_json else show(libraries_view(found))
