"""`windtunnel validate`: how far predictions are from published measurements."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costmodels import measurements
from costmodels.catalog import Catalog
from costmodels.files import write_atomically
from costmodels.tables.table import TableSpec
from simcore import rows
from simcore.progress import Progress
from simcore.tables import find

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


def validate(
    table: str,
    path: str | Path | None = None,
    *,
    folders: Iterable[Path] = (),
    out: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How far the predictions of a table are from the rows in `path`, or from those that the project ships.

    {table, rows, covered, median_ape, mean_ape, p90_ape, bias}: errors are fractions of what was measured, `covered` counts rows
    that the model has something to say about, `bias` is the median of their signed errors; without such rows the errors are None.
    Then `within`, the share of rows inside their own error band; `roofline`, the same errors of the baseline; `groups`, the
    same by device, dtype, op and source; `not_covered`, numbers of rows by device; and `memory` where the table has it. `out`
    (.csv or .parquet) gets every row with `predicted_s`, `error`, `expected_error` and `roofline_s`.

    Raises `DataError` for an unknown table, missing columns, and rows that cannot be measurements in seconds.
    """
    spec = find(table)
    file = Path(path) if path is not None else measurements.path(table)
    frame = rows.read(file, spec)
    catalog = Catalog(folders)
    if progress:
        progress(0.1, f"{len(frame)} rows")
    said = spec.predict(frame, catalog, None)
    if progress:
        progress(0.8, "baseline")
    roofline = spec.roofline(frame, catalog)
    rows.check_units(frame, spec, said.seconds, roofline, file)
    measured = frame[spec.measured].to_numpy(dtype=np.float64)
    error, base = said.seconds / measured - 1.0, roofline / measured - 1.0
    if out is not None:
        columns = {"predicted_s": said.seconds, "error": error, "expected_error": said.error, "roofline_s": roofline}
        _write(frame.assign(**columns), out)
    found = {"table": table, "rows": len(frame), **summary(error), "within": within(error, said.error)}
    found["roofline"] = summary(base)
    found["groups"] = {c: grouped(frame[c], error, base) for c in spec.groups if c in frame.columns}
    found["not_covered"] = _not_covered(frame, spec, error)
    if spec.memory is not None:
        found["memory"] = summary(spec.memory(frame, catalog))
    return found


def summary(error: Floats) -> dict[str, Any]:
    """Counts and quantiles of signed relative errors (rows,), NaN where nothing was predicted."""
    known = error[~np.isnan(error)]
    if not len(known):
        return {"covered": 0, "median_ape": None, "mean_ape": None, "p90_ape": None, "bias": None}
    size = np.abs(known)
    return {
        "covered": len(known),
        "median_ape": float(np.median(size)),
        "mean_ape": float(size.mean()),
        "p90_ape": float(np.quantile(size, 0.9)),
        "bias": float(np.median(known)),
    }


def within(error: Floats, expected: Floats) -> float | None:
    """Share of rows that are as close as was expected of them, None where nothing was expected."""
    known = ~np.isnan(error) & ~np.isnan(expected)
    return float((np.abs(error) <= expected)[known].mean()) if known.any() else None


def grouped(column: "pd.Series[Any]", error: Floats, baseline: Floats) -> list[dict[str, Any]]:
    """`summary` for each value of a column, the baseline's median beside it; the largest groups first."""
    values = column.fillna("-").astype(str).to_numpy()
    found = []
    for value in sorted(set(values)):
        inside = values == value
        base = summary(baseline[inside])["median_ape"]
        found.append({"value": value, "rows": int(inside.sum()), **summary(error[inside]), "roofline_median_ape": base})
    return sorted(found, key=lambda row: -row["rows"])


def _not_covered(frame: "pd.DataFrame", spec: TableSpec, error: Floats) -> dict[str, str]:
    """Numbers of the rows without a prediction, by the first column that groups them."""
    values = frame[spec.groups[0]].fillna("-").astype(str).to_numpy()
    missing = np.isnan(error)
    return {value: rows.numbered(missing & (values == value)) for value in sorted(set(values[missing]))}


def _write(frame: "pd.DataFrame", out: Path) -> None:
    if out.suffix == ".parquet":
        write_atomically(out, frame.to_parquet(index=False))
    else:
        write_atomically(out, frame.to_csv(index=False))
