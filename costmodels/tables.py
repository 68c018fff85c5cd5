"""Predictions for tables of published measurements: one function for each table, from its columns to seconds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costmodels.catalog import Catalog
from costmodels.collective_tables import predict_rows
from costmodels.compute import estimate, gemm_seconds
from costmodels.errors import DataError
from costmodels.kernels import kernel
from costmodels.specs import DeviceSpec

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Predict = Callable[["pd.DataFrame", Catalog], Floats]
"""Seconds for each row, NaN where the model has nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """Columns that must be there, the one that was measured (seconds), and how to predict it."""

    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    measured: str
    predict: Predict


DTYPES: Mapping[str, str] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "sq": "int8",
}
"""Dtypes of the tables that the model has arithmetic for."""

ELEMENTWISE: Mapping[str, str] = {
    **dict.fromkeys(("add", "mul", "div"), "add"),
    **dict.fromkeys(("addu", "mulu", "divu", "powu", "pow", "relu", "gelu", "tanh"), "gelu"),
    "ln": "layernorm",
    "softmax": "softmax",
}
"""Operators of the tables and the kernel that moves the same bytes."""


def _devices(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, DeviceSpec]:
    """The devices of a table that the catalogue knows, by the table's name."""
    found = {}
    for name in frame["device"].dropna().unique():
        try:
            found[name] = catalog.device(str(name))
        except DataError:
            continue  # the rows of this device are not covered, which the summary counts
    return found


def _rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False, name=None)]


def predict_gemm(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    out = np.full(len(frame), np.nan)
    for name, device in _devices(frame, catalog).items():
        for dtype, ours in DTYPES.items():
            rows = ((frame["device"] == name) & (frame["dtype"] == dtype)).to_numpy()
            if rows.any():
                sizes = [frame.loc[rows, c].fillna(1).to_numpy(dtype=np.float64) for c in ("batch", "m", "n", "k")]
                out[rows] = gemm_seconds(device, ours, *sizes)
    return out


def predict_elementwise(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    devices = _devices(frame, catalog)
    out = []
    for row in _rows(frame):
        if row["op"] not in ELEMENTWISE or row["device"] not in devices:
            out.append(np.nan)
            continue
        moved = kernel(ELEMENTWISE[row["op"]], "float32", rows=int(row["rows"]), cols=int(row["cols"]))
        out.append(estimate(moved, devices[row["device"]]).seconds)
    return np.array(out)


def predict_attention(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    devices = _devices(frame, catalog)
    names = ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim")
    out = []
    for row in _rows(frame):
        if row["device"] not in devices or row["dtype"] not in DTYPES:
            out.append(np.nan)
            continue
        sizes = {name: int(row[name]) for name in names}
        out.append(
            estimate(kernel("attention", DTYPES[row["dtype"]], causal=1, **sizes), devices[row["device"]]).seconds
        )
    return np.array(out)


TABLES: Mapping[str, TableSpec] = {
    "gemm": TableSpec(
        columns=("device", "dtype", "batch", "m", "n", "k", "latency_s"),
        numbers=("m", "n", "k", "latency_s"),
        measured="latency_s",
        predict=predict_gemm,
    ),
    "elementwise": TableSpec(
        columns=("device", "op", "rows", "cols", "latency_s"),
        numbers=("rows", "cols", "latency_s"),
        measured="latency_s",
        predict=predict_elementwise,
    ),
    "attention": TableSpec(
        columns=("device", "phase", "batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "dtype", "latency_s"),
        numbers=("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "latency_s"),
        measured="latency_s",
        predict=predict_attention,
    ),
    "collectives": TableSpec(
        columns=("device", "n_ranks", "n_nodes", "op", "nbytes", "time_s"),
        numbers=("n_ranks", "nbytes", "time_s"),
        measured="time_s",
        predict=predict_rows,
    ),
}
"""Tables that can be predicted, by name."""
