"""Elementwise operators, layer norm and softmax: columns device, op, rows, cols, latency_s."""

from typing import TYPE_CHECKING

import numpy as np

from costmodels.catalog import Catalog
from costmodels.compute import estimate
from costmodels.kernels import kernel, nbytes
from costmodels.prediction import Floats, Prediction
from costmodels.tables.table import Fitted, TableSpec, devices_of, rows_of

if TYPE_CHECKING:
    import pandas as pd

OPS = {
    **dict.fromkeys(("add", "mul", "div", "pow"), "add"),
    **dict.fromkeys(("addu", "mulu", "divu", "powu", "relu", "gelu", "tanh"), "gelu"),
    "ln": "layernorm",
    "softmax": "softmax",
}
"""Operators of the table and the kernel that moves the same bytes; those that end in u have one operand and a number."""


def predict(frame: "pd.DataFrame", catalog: Catalog, _fitted: Fitted | None = None) -> Prediction:
    devices = devices_of(frame, catalog)
    out = np.full(len(frame), np.nan)
    for i, row in enumerate(rows_of(frame)):
        if row["op"] in OPS and row["device"] in devices:
            moved = kernel(OPS[row["op"]], "float32", rows=int(row["rows"]), cols=int(row["cols"]))
            out[i] = estimate(moved, devices[row["device"]]).seconds
    return Prediction.plain(out)


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """Bytes over bandwidth."""
    devices = devices_of(frame, catalog)
    out = np.full(len(frame), np.nan)
    for i, row in enumerate(rows_of(frame)):
        if row["op"] in OPS and row["device"] in devices:
            moved = kernel(OPS[row["op"]], "float32", rows=int(row["rows"]), cols=int(row["cols"]))
            out[i] = nbytes(moved) / devices[row["device"]].memory_B_per_s
    return out


TABLE = TableSpec(
    columns=("device", "op", "rows", "cols", "latency_s"),
    numbers=("rows", "cols", "latency_s"),
    measured="latency_s",
    groups=("device", "op", "source"),
    predict=predict,
    roofline=roofline,
)
