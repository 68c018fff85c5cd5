"""How far predictions are off for rows of a kind that the fit has not seen."""

from typing import TYPE_CHECKING

import numpy as np

from costmodels.catalog import Catalog
from costmodels.prediction import Floats
from simcore.fit import fit_of
from simcore.tables import find

if TYPE_CHECKING:
    import pandas as pd


def left_out(name: str, frame: "pd.DataFrame", column: str) -> Floats:
    """(rows,) signed relative errors; each row is predicted by a fit to the rows with another value in `column`.

    Rows without a value stay in every fit and get NaN, as do rows that the model has nothing to say about.
    """
    spec, fit, catalog = find(name), fit_of(name), Catalog()
    measured = frame[spec.measured].to_numpy(dtype=np.float64)
    error = np.full(len(frame), np.nan)
    for value in sorted(frame[column].dropna().unique()):
        out = (frame[column] == value).to_numpy()
        fitted = fit(frame[~out].reset_index(drop=True), catalog)
        said = spec.predict(frame[out].reset_index(drop=True), catalog, fitted)
        error[out] = said.seconds / measured[out] - 1.0
    return error
