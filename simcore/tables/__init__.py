"""Tables that take a simulator's parts to predict; `costmodels.tables` has those that kernels and links are enough for."""

import importlib
import pkgutil
from difflib import get_close_matches

import costmodels.tables
from costmodels.errors import DataError, Problem
from costmodels.tables.table import TableSpec

PACKAGES = ("costmodels.tables", "simcore.tables")


def names() -> list[str]:
    """Every table of both packages, sorted."""
    return sorted({*costmodels.tables.names(), *(m.name for m in pkgutil.iter_modules(__path__))})


def find(name: str) -> TableSpec:
    """The table of that name, from whichever package has it. Raises `DataError` if there is none."""
    for package in PACKAGES:
        if name in {m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__)} - {"table"}:
            found: TableSpec = importlib.import_module(f"{package}.{name}").TABLE
            return found
    close = get_close_matches(name, names(), 1)
    advice = f"Did you mean {close[0]}?" if close else ""
    raise DataError("unknown table", [Problem("TABLE", repr(name), ", ".join(names()), advice)])
