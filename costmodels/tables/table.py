"""What a table of measurements is to the program, and what several of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodels.catalog import Catalog
from costmodels.errors import DataError
from costmodels.prediction import Floats, Prediction
from costmodels.specs import DeviceSpec

if TYPE_CHECKING:
    import pandas as pd

Fitted = Mapping[str, Any]
"""What a fit found, as plain data: the content of `costmodels/fitted/NAME.yaml`."""


def _as_it_is(frame: "pd.DataFrame") -> "pd.DataFrame":
    return frame


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """`columns` must be there, `numbers` must hold positive numbers where they hold anything, `measured` is in seconds.

    `prepare` turns the rows of a file into the rows that are predicted (operators of a model pass into one row, other units into
    seconds), and leaves those alone that it has made. `groups` are the columns by which the scoreboard is broken down, the first
    names the device. `predict(frame, catalog, fitted)` takes the fitted table from `costmodels/fitted` unless it is given another
    one, as leave-one-out does; `roofline(frame, catalog)` is the baseline: the larger of FLOPs over peak and bytes over bandwidth,
    nothing else. `memory(frame, catalog)` gives signed relative errors of memory, NaN where none was measured.
    """

    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    measured: str
    groups: tuple[str, ...]
    predict: Callable[["pd.DataFrame", Catalog, Fitted | None], Prediction]
    roofline: Callable[["pd.DataFrame", Catalog], Floats]
    prepare: Callable[["pd.DataFrame"], "pd.DataFrame"] = _as_it_is
    memory: Callable[["pd.DataFrame", Catalog], Floats] | None = None


def devices_of(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, DeviceSpec]:
    """The devices of a table that the catalogue knows, by the table's name; rows of others are not covered."""
    found = {}
    for name in frame["device"].dropna().unique():
        try:
            found[str(name)] = catalog.device(str(name))
        except DataError:
            continue  # counted by the summary as not covered
    return found


def rows_of(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows as plain dictionaries, which iterate faster than a frame."""
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False, name=None)]
