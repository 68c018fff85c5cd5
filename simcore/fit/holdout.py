"""How far predictions are off for rows of a kind that the fit has not seen."""

import re
from typing import TYPE_CHECKING

import numpy as np

from costmodels.catalog import Catalog
from costmodels.errors import DataError
from costmodels.prediction import Floats
from simcore.fit import fit_of
from simcore.progress import Progress
from simcore.tables import find

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("device", "source")

_PUBLISHER = re.compile(r"[:,@]| - | \(")


def held_by(name: str, frame: "pd.DataFrame", kind: str) -> "pd.Series[str] | None":
    """(rows,) what is left out together: a device, or what one publisher measured; None where the rows are all of one.

    A device goes by its name in the catalogue, whatever its rows call it. A source names its publisher before the first colon,
    comma or bracket: tables of one publisher's releases are no strangers to each other.
    """
    column = find(name).groups[0] if kind == "device" else kind
    if column not in frame.columns:
        return None
    values = frame[column].dropna().astype(str)
    names = {value: _device(value) if kind == "device" else _publisher(value) for value in values.unique()}
    found = values.map(names)
    return found.reindex(frame.index) if found.nunique() > 1 else None


def _device(value: str) -> str:
    try:
        return Catalog().device(value).name
    except DataError:
        return value  # its rows are not covered, and are left out by themselves


def _publisher(value: str) -> str:
    return _PUBLISHER.split(value)[0].strip()


def left_out(name: str, frame: "pd.DataFrame", held: "pd.Series[str]", progress: Progress | None = None) -> Floats:
    """(rows,) signed relative errors; each row is predicted by a fit to the rows with another value in `held`.

    Rows without a value stay in every fit and get NaN, as do rows that the model has nothing to say about.
    """
    spec, fit, catalog = find(name), fit_of(name), Catalog()
    measured = frame[spec.measured].to_numpy(dtype=np.float64)
    error = np.full(len(frame), np.nan)
    values = sorted(held.dropna().unique())
    for i, value in enumerate(values):
        if progress:
            progress(i / len(values), f"{name} without {value}")
        out = (held == value).to_numpy()
        fitted = fit(frame[~out].reset_index(drop=True), catalog)
        said = spec.predict(frame[out].reset_index(drop=True), catalog, fitted)
        error[out] = said.seconds / measured[out] - 1.0
    return error
