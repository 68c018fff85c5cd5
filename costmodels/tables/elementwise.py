"""Elementwise operators, layer norm and softmax in float32: columns device, op, rows, cols, latency_s (dtype, source)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels import fitted as fitted_tables
from costmodels.catalog import Catalog
from costmodels.kernels import WIDTH_B
from costmodels.prediction import Floats, Prediction
from costmodels.specs import DeviceSpec
from costmodels.streaming import parameters_of, row_seconds, stream_seconds, trusted
from costmodels.tables.table import Fitted, TableSpec, devices_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Elements that are read for each that is written, and the limit that may bind besides memory."""

    operands: float = 1.0
    kind: str = "pointwise"  # pointwise | norm | softmax
    work: str | None = None  # name of its FLOPs for each element among the fitted parameters


OPS = {
    **dict.fromkeys(("add", "sub", "mul", "div"), Operator(operands=2.0)),
    "pow": Operator(operands=2.0, work="powu_flops"),
    **dict.fromkeys(("addu", "subu", "mulu", "divu", "relu", "gelu", "tanh", "silu", "sigmoid", "exp"), Operator()),
    "powu": Operator(work="powu_flops"),
    **dict.fromkeys(("ln", "layernorm", "layer_norm"), Operator(kind="norm")),
    "softmax": Operator(kind="softmax"),
}
"""Operators of the table; those that end in u have one operand and a number."""


def predict(frame: "pd.DataFrame", catalog: Catalog, fitted: Fitted | None = None) -> Prediction:
    """(rows,) seconds that the source's timer would show: of the kernel, and what starting it from Python adds."""
    table = fitted_tables.load("elementwise") if fitted is None else fitted
    out = Prediction.plain(np.full(len(frame), np.nan))
    devices, dtypes = devices_of(frame, catalog), _dtypes(frame)
    for names, at in frame.assign(dtype=dtypes).groupby(["device", "op", "dtype"]).indices.items():
        name, op, dtype = _three(names)
        if name in devices and op in OPS and dtype in WIDTH_B:
            rows, cols = (frame[c].to_numpy(dtype=np.float64)[at] for c in ("rows", "cols"))
            found = _timed(devices[name], table, OPS[op], WIDTH_B[dtype], rows, cols, seen=dtype == "float32")
            out.seconds[at], out.error[at], out.extrapolated[at] = found.seconds, found.error, found.extrapolated
    return out


def _three(names: Any) -> tuple[str, str, str]:
    """A key of pandas' groups, whose type its stubs do not know."""
    device, op, dtype = names
    return device, op, dtype


def _timed(
    device: DeviceSpec, table: Fitted, op: Operator, width_B: float, rows: Floats, cols: Floats, *, seen: bool
) -> Prediction:
    once = width_B * rows * cols
    read, moved = op.operands * once, (op.operands + 1.0) * once
    if op.kind == "pointwise":
        work = parameters_of(device, table)[op.work] * rows * cols if op.work else 0.0
        busy = stream_seconds(device, table, read, once, work)
    else:
        busy = row_seconds(device, table, op.kind == "norm", rows, cols, width_B, read, moved)
    return trusted(device, table, op.kind, busy + table["parameters"]["harness_s"], moved, seen=seen)


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """Bytes over bandwidth."""
    rate = {name: device.memory_B_per_s for name, device in devices_of(frame, catalog).items()}
    streams = frame["op"].map({name: op.operands + 1.0 for name, op in OPS.items()}).to_numpy(dtype=np.float64)
    width = _dtypes(frame).map(WIDTH_B).to_numpy(dtype=np.float64)
    rows, cols = (frame[c].to_numpy(dtype=np.float64) for c in ("rows", "cols"))
    moved = streams * width * rows * cols
    return np.asarray(moved / frame["device"].map(rate).to_numpy(dtype=np.float64), dtype=np.float64)


def _dtypes(frame: "pd.DataFrame") -> "pd.Series[str]":
    """float32 where the table does not say."""
    import pandas as pd

    if "dtype" not in frame.columns:
        return pd.Series("float32", index=frame.index)
    return frame["dtype"].fillna("float32")


TABLE = TableSpec(
    columns=("device", "op", "rows", "cols", "latency_s"),
    numbers=("rows", "cols", "latency_s"),
    measured="latency_s",
    groups=("device", "op", "source"),
    predict=predict,
    roofline=roofline,
)
