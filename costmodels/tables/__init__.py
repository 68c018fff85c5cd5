"""Tables of published measurements that the models can predict: one file for each, found by its name.

`costmodels/tables/gemm.py` holds `TABLE`, a `TableSpec`: which columns a file must have, how its rows are predicted, and what plain
roofline says of them. `costmodels/fit/gemm.py` fits what the prediction needs into `costmodels/fitted/gemm.yaml`.
"""

import importlib
import pkgutil

from costmodels.errors import DataError, Problem
from costmodels.tables.table import TableSpec


def names() -> list[str]:
    """Every table, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "table")


def find(name: str) -> TableSpec:
    """The table of that name. Raises `DataError` if there is none."""
    if name not in names():
        raise DataError("unknown table", [Problem("TABLE", repr(name), ", ".join(names()))])
    found: TableSpec = importlib.import_module(f"costmodels.tables.{name}").TABLE
    return found
