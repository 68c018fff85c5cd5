"""From collected measurements to the tables that the project ships: `python -m costmodels.fit.ship FOLDER`.

FOLDER holds `gemm.csv` and so on. Only rows whose publisher permits it are kept; `costmodels/data` gets one Parquet file for each
table and a README that says where every row is from.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from costmodels.files import write_atomically
from costmodels.measurements import FOLDER, TABLES

if TYPE_CHECKING:
    import pandas as pd

PERMITTED = ("Apache-2.0", "MIT", "BSD")
"""How licences start that permit redistribution; rows of papers and pages without one are not shipped."""

PUBLISHERS: Mapping[str, str] = {
    "NVIDIA aiconfigurator": "Apache-2.0",
    "aiconfigurator": "Apache-2.0",
    "NeuSight": "MIT",
    "Vidur profiling": "MIT",
    "AWS awsome-distributed-training": "MIT-0",
    "DeepEP": "MIT",
    "BigScience all_reduce_bench": "Apache-2.0",
    "Flux performance report": "Apache-2.0",
}
"""Licences of tables without a column for them, by how their `source` starts."""

DEFAULT = {"model_operators": ("NeuSight", "MIT")}
"""Publisher and licence of tables that name none."""


def main(folder: Path) -> None:
    """Write every table of `folder` that the project knows."""
    import pandas as pd

    lines = [
        "# Measured tables",
        "",
        "Rows as their publishers measured them; SI units. Made by `python -m costmodels.fit.ship`.",
        "",
    ]
    lines += ["| table | rows | publishers and licences |", "|---|---|---|"]
    for table in TABLES:
        path = folder / f"{table}.csv"
        if not path.is_file():
            continue
        frame = pd.read_csv(path, low_memory=False)
        frame["licence"] = _licences(frame, table)
        kept = frame[frame["licence"].str.startswith(PERMITTED)]
        write_atomically(
            FOLDER / f"{table}.parquet", kept.reset_index(drop=True).to_parquet(index=False, compression="zstd")
        )
        lines.append(f"| {table} | {len(kept):,} | {_publishers(kept, table)} |")
    write_atomically(FOLDER / "README.md", "\n".join(lines) + "\n")


def _licences(frame: "pd.DataFrame", table: str) -> "pd.Series[str]":
    if "licence" in frame.columns:
        return frame["licence"].fillna("unknown").astype(str)
    if table in DEFAULT:
        return frame.iloc[:, 0].map(lambda _: DEFAULT[table][1])
    return frame["source"].map(
        lambda source: next(
            (licence for start, licence in PUBLISHERS.items() if str(source).startswith(start)), "unknown"
        )
    )


def _publishers(frame: "pd.DataFrame", table: str) -> str:
    """The first words of every source with its licence, the largest first."""
    if table in DEFAULT:
        return "{} ({})".format(*DEFAULT[table])
    names = frame["source"].map(_publisher) + " (" + frame["licence"] + ")"
    return "; ".join(f"{name}: {count:,}" for name, count in names.value_counts().items())


def _publisher(source: object) -> str:
    text = str(source)
    known = next((start for start in PUBLISHERS if text.startswith(start)), None)
    return known or " ".join(text.replace(":", " ").replace(",", " ").split()[:4])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
