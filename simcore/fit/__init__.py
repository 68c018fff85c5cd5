"""Fits of all tables: `make fit` is `python -m simcore.fit`, which writes `costmodels/fitted`.

A fit is one file, `costmodels/fit/NAME.py` or, where a simulator's parts are needed, `simcore/fit/NAME.py`, with
`fit(frame, catalog) -> dict`. It depends on nothing but the prepared rows it is given, so that leaving rows out is the same call.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodels import measurements
from costmodels.catalog import Catalog
from simcore.tables import find

if TYPE_CHECKING:
    import pandas as pd

ORDER = (
    "elementwise",
    "gemm",
    "attention",
    "collectives",
    "model_operators",
    "serving",
    "storage",
    "training",
)
"""Kernels first: what comes later stands on them."""

Fit = Callable[["pd.DataFrame", Catalog], dict[str, Any]]


def fit_of(name: str) -> Fit:
    """The fit of a table."""
    package = "costmodels.fit" if importlib.util.find_spec(f"costmodels.fit.{name}") else "simcore.fit"
    found: Fit = importlib.import_module(f"{package}.{name}").fit
    return found


def more_rows(name: str) -> Mapping[str, Callable[["pd.DataFrame"], "pd.DataFrame"]]:
    """Other files whose rows the fit takes, and what makes rows of this table of them: `MORE` of its module."""
    found: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = getattr(
        sys.modules[fit_of(name).__module__], "MORE", {}
    )
    return found


def rows_for(name: str, folder: Path | None = None) -> "pd.DataFrame":
    """Prepared rows of a table with those of other files that its fit takes."""
    import pandas as pd

    spec = find(name)
    parts = [spec.prepare(measurements.load(name, folder))]
    parts += [convert(measurements.load(other, folder)) for other, convert in more_rows(name).items()]
    rows = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    return rows[rows[spec.measured] > 0].reset_index(drop=True)
