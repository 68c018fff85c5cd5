"""Files of measurements as frames: what is wrong with a file is said once, with the numbers of all its bad rows."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costmodels.errors import DataError, Problem
from costmodels.tables.table import TableSpec

if TYPE_CHECKING:
    import pandas as pd

HEADER = 2  # the first row below a header of one line has this number in a spreadsheet
IMPOSSIBLE = 20.0  # times faster than the data sheet: a unit that is not seconds
SLOW = 300.0  # times slower in the median than predicted: the same
Floats = NDArray[np.float64]


def read(path: Path, spec: TableSpec) -> "pd.DataFrame":
    """The rows that are predicted, prepared; those without a measurement are left out.

    Raises `DataError` for a file that cannot be read, lacks columns, or holds numbers that are none or not positive.
    """
    frame = _frame(path)
    missing = [c for c in spec.columns if c not in frame.columns]
    if missing:
        problems = [Problem(f"column {c}", "missing", ", ".join(spec.columns)) for c in missing]
        raise DataError(f"{path} lacks columns", problems)
    problems = [p for column in spec.numbers if column in frame.columns for p in _not_positive(frame, column)]
    if problems:
        raise DataError(f"{path} holds rows that cannot be measurements", problems)
    prepared = spec.prepare(frame)
    return prepared[prepared[spec.measured] > 0].reset_index(drop=True)


def _frame(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, low_memory=False)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        problem = Problem("--data", str(path), "a readable CSV or Parquet file", reason)
        raise DataError("unreadable data", [problem]) from error


def _not_positive(frame: "pd.DataFrame", column: str) -> list[Problem]:
    """Numbers in place of text, and what is neither a positive number nor empty."""
    import pandas as pd

    given = frame[column]
    numbers = pd.to_numeric(given, errors="coerce")
    frame[column] = numbers
    bad = (numbers.isna() & given.notna()) | (numbers <= 0)
    if not bad.any():
        return []
    shown = repr(given[bad].iloc[0])
    return [Problem(f"{column} of rows {numbered(bad.to_numpy())}", shown, "positive numbers")]


def check_units(frame: "pd.DataFrame", spec: TableSpec, predicted: Floats, roofline: Floats, path: Path) -> None:
    """Raise `DataError` for measurements that no unit of seconds explains."""
    measured = frame[spec.measured].to_numpy(dtype=np.float64)
    with np.errstate(invalid="ignore"):
        fast = measured * IMPOSSIBLE < roofline
        slow = np.nanmedian(measured / predicted) > SLOW if (predicted > 0).any() else False
    problems = []
    if fast.any():
        given = f"{measured[fast][0]:.4g} s, where the data sheet allows {roofline[fast][0]:.4g} s"
        problems.append(Problem(f"{spec.measured} of rows {numbered(fast)}", given, "seconds", "Is the unit right?"))
    if slow:
        given = f"{np.nanmedian(measured / predicted):.4g} times what is predicted, in the median"
        problems.append(
            Problem(f"{spec.measured} of rows {numbered(predicted > 0)}", given, "seconds", "Milliseconds?")
        )
    if problems:
        raise DataError(f"{path} holds times in another unit", problems)


def numbered(rows: NDArray[np.bool_]) -> str:
    """Numbers of the rows that are set, as a spreadsheet counts them: `3-5, 9`."""
    return ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in _runs(np.flatnonzero(rows) + HEADER)
    )


def _runs(numbers: NDArray[Any]) -> Iterable[tuple[int, int]]:
    breaks = np.flatnonzero(np.diff(numbers) > 1)
    firsts, lasts = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(numbers) - 1]])
    return [(int(numbers[a]), int(numbers[b])) for a, b in zip(firsts, lasts, strict=True)] if len(numbers) else []
