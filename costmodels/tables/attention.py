"""Attention: columns device, phase, batch, q_len, kv_len, heads, kv_heads, head_dim, dtype, latency_s (kv_dtype, source)."""

from typing import TYPE_CHECKING

import numpy as np

from costmodels.arithmetic import native_dtype
from costmodels.catalog import Catalog
from costmodels.compute import estimate
from costmodels.kernels import Kernel, flops, kernel, nbytes
from costmodels.prediction import Floats, Prediction
from costmodels.specs import DeviceSpec
from costmodels.tables.table import Fitted, TableSpec, devices_of, rows_of

if TYPE_CHECKING:
    import pandas as pd

SIZES = ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim")
DTYPES = ("float32", "float16", "bfloat16", "fp8")


def _kernels(frame: "pd.DataFrame", catalog: Catalog) -> list[tuple[Kernel, DeviceSpec] | None]:
    devices = devices_of(frame, catalog)
    return [
        (kernel("attention", row["dtype"], causal=1, **{s: int(row[s]) for s in SIZES}), devices[row["device"]])
        if row["device"] in devices and row["dtype"] in DTYPES
        else None
        for row in rows_of(frame)
    ]


def predict(frame: "pd.DataFrame", catalog: Catalog, _fitted: Fitted | None = None) -> Prediction:
    found = [np.nan if known is None else estimate(*known).seconds for known in _kernels(frame, catalog)]
    return Prediction.plain(np.array(found, dtype=np.float64))


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """The larger of FLOPs over peak and bytes over bandwidth."""
    out = np.full(len(frame), np.nan)
    for i, known in enumerate(_kernels(frame, catalog)):
        if known is not None:
            op, device = known
            peak = device.flop_per_s[native_dtype(op.dtype, device)]
            out[i] = max(flops(op) / peak, nbytes(op) / device.memory_B_per_s)
    return out


TABLE = TableSpec(
    columns=("device", "phase", "batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "dtype", "latency_s"),
    numbers=("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "latency_s"),
    measured="latency_s",
    groups=("device", "phase", "dtype", "source"),
    predict=predict,
    roofline=roofline,
)
