"""The measured tables that the project ships; `costmodels/data/README.md` says where every row is from."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from costmodels.errors import DataError, Problem

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).parent / "data"
TABLES = (
    "gemm",
    "elementwise",
    "attention",
    "flash_attention",
    "collectives",
    "model_operators",
    "training",
    "training_single_gpu",
    "serving",
    "storage",
)
"""Names of the files."""


def path(table: str, folder: Path | None = None) -> Path:
    """Where a table's rows are: `folder/NAME.csv` if a folder of one's own is given."""
    return folder / f"{table}.csv" if folder is not None else FOLDER / f"{table}.parquet"


def load(table: str, folder: Path | None = None) -> "pd.DataFrame":
    """All rows of a table. Raises `DataError` if there is no such file."""
    import pandas as pd

    file = path(table, folder)
    if not file.is_file():
        raise DataError(
            "no measurements", [Problem("table", str(file), "a file of measurements", f"Tables: {', '.join(TABLES)}.")]
        )
    return pd.read_csv(file, low_memory=False) if file.suffix == ".csv" else pd.read_parquet(file)


def digest(table: str, folder: Path | None = None) -> str:
    """SHA-256 of the file, for provenance."""
    return hashlib.sha256(path(table, folder).read_bytes()).hexdigest()
