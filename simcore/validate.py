"""`windtunnel validate`: how far predictions are from published measurements."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.catalog import Catalog
from costmodels.errors import DataError, Problem
from costmodels.files import write_atomically
from costmodels.tables import find
from costmodels.tables.table import TableSpec
from simcore.backend import Progress

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10  # bad rows that are named


def validate(
    table: str,
    path: str | Path,
    *,
    folders: Iterable[Path] = (),
    out: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """{table, rows, covered, median_ape, mean_ape, p90_ape, bias}: errors are fractions of what was measured.

    `covered` counts rows that the model has something to say about, bias is the median of their signed errors; without such
    rows the errors are None. `out` (.csv or .parquet) gets every row with `predicted_s` and `error`. Raises `DataError` for an
    unknown table, missing columns, and rows that hold no number or a negative one.
    """
    spec = find(table)
    frame = _read(Path(path), spec)
    if progress:
        progress(0.3, f"{len(frame)} rows")
    predicted = spec.predict(frame, Catalog(folders), None).seconds
    error = predicted / frame[spec.measured].to_numpy(dtype=np.float64) - 1.0
    if out is not None:
        _write(frame.assign(predicted_s=predicted, error=error), out)
    return {"table": table, "rows": len(frame), **summary(error)}


def summary(error: "np.ndarray[Any, np.dtype[np.float64]]") -> dict[str, Any]:
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


def _read(path: Path, spec: TableSpec) -> "pd.DataFrame":
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, low_memory=False)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(
            "unreadable data", [Problem("--data", str(path), "a readable CSV or Parquet file", reason)]
        ) from error
    missing = [c for c in spec.columns if c not in frame.columns]
    if missing:
        problems = [Problem(f"column {c}", "missing", ", ".join(spec.columns)) for c in missing]
        raise DataError(f"{path} lacks columns", problems)
    problems = []
    for column in spec.numbers:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        bad = frame.index[(numbers.isna() & frame[column].notna()) | (numbers <= 0)]
        problems += [
            Problem(f"row {i + 2}, {column}", repr(frame.loc[i, column]), "a positive number") for i in bad[:SHOWN]
        ]
        if len(bad) > SHOWN:
            problems.append(Problem(column, f"{len(bad) - SHOWN} more such rows", "positive numbers"))
        frame[column] = numbers
    if problems:
        raise DataError(f"{path} holds rows that cannot be measurements", problems)
    return spec.prepare(frame.dropna(subset=[spec.measured]).reset_index(drop=True))


def _write(frame: "pd.DataFrame", out: Path) -> None:
    if out.suffix == ".parquet":
        write_atomically(out, frame.to_parquet(index=False))
    else:
        write_atomically(out, frame.to_csv(index=False))
