"""Matrix products: columns device, dtype, batch, m, n, k, latency_s (and source, which names the library)."""

from typing import TYPE_CHECKING

import numpy as np

from costmodels import gemm
from costmodels.arithmetic import native_dtype
from costmodels.catalog import Catalog
from costmodels.kernels import WIDTH_B
from costmodels.prediction import Floats, Prediction
from costmodels.tables.table import Fitted, TableSpec, devices_of

if TYPE_CHECKING:
    import pandas as pd

DTYPES = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "sq": "int8",
}


def predict(frame: "pd.DataFrame", catalog: Catalog, _fitted: Fitted | None = None) -> Prediction:
    out = np.full(len(frame), np.nan)
    for name, device in devices_of(frame, catalog).items():
        for dtype, ours in DTYPES.items():
            rows = ((frame["device"] == name) & (frame["dtype"] == dtype)).to_numpy()
            if rows.any():
                sizes = [frame.loc[rows, c].fillna(1).to_numpy(dtype=np.float64) for c in ("batch", "m", "n", "k")]
                out[rows] = gemm.predict(device, ours, *sizes).seconds
    return Prediction.plain(out)


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """The larger of FLOPs over peak and bytes over bandwidth."""
    out = np.full(len(frame), np.nan)
    b, m, n, k = (frame[c].fillna(1).to_numpy(dtype=np.float64) for c in ("batch", "m", "n", "k"))
    for name, device in devices_of(frame, catalog).items():
        for dtype, ours in DTYPES.items():
            rows = ((frame["device"] == name) & (frame["dtype"] == dtype)).to_numpy()
            flops = 2 * b * m * n * k / device.flop_per_s[native_dtype(ours, device)]
            moved = WIDTH_B[ours] * b * (m * k + k * n + m * n) / device.memory_B_per_s
            out[rows] = np.maximum(flops, moved)[rows]
    return out


TABLE = TableSpec(
    columns=("device", "dtype", "batch", "m", "n", "k", "latency_s"),
    numbers=("m", "n", "k", "latency_s"),
    measured="latency_s",
    groups=("device", "dtype", "source"),
    predict=predict,
    roofline=roofline,
)
