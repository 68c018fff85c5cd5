"""Matrix products: columns device, dtype, batch, m, n, k, latency_s (and source, which names the library)."""

import re
from typing import TYPE_CHECKING

import numpy as np

from costmodels import gemm
from costmodels.arithmetic import format_of
from costmodels.catalog import Catalog
from costmodels.prediction import Floats, Prediction
from costmodels.tables.table import Fitted, TableSpec, devices_of

if TYPE_CHECKING:
    import pandas as pd

LIBRARIES = (
    (r"trt-?llm|tensorrt", "trtllm"),
    (r"sglang", "sglang"),
    (r"vllm", "vllm"),
    (r"neusight|pytorch|torch", "pytorch"),
    (r"cublas", "cublas"),
)
"""Words in a table's `source` that tell which library ran, the first that is there. NeuSight timed PyTorch's operators."""


def library_of(source: object) -> str | None:
    """The library that a source names, None where it names none."""
    text = str(source).lower()
    return next((library for words, library in LIBRARIES if re.search(words, text)), None)


def libraries(frame: "pd.DataFrame") -> list[str | None]:
    """(rows,) of `library_of`."""
    if "source" not in frame.columns:
        return [None] * len(frame)
    found = {source: library_of(source) for source in frame["source"].unique()}
    return [found[source] for source in frame["source"]]


def sizes_of(frame: "pd.DataFrame") -> list[Floats]:
    """(rows,) of batch (1 where the table has none), m, n, k."""
    batch = frame["batch"].fillna(1) if "batch" in frame.columns else 1.0
    return [np.broadcast_to(np.asarray(s, dtype=np.float64), len(frame)) for s in (batch, *(frame[c] for c in "mnk"))]


def predict(frame: "pd.DataFrame", catalog: Catalog, fitted: Fitted | None = None) -> Prediction:
    """(rows,) seconds; NaN for devices and dtypes that are unknown."""
    devices, sizes = devices_of(frame, catalog), sizes_of(frame)
    out = Prediction.plain(np.full(len(frame), np.nan))
    for (name, dtype, library), rows in _groups(frame).items():
        if name in devices:
            found = gemm.predict(devices[name], dtype, *(s[rows] for s in sizes), library=library, fitted=fitted)
            out.seconds[rows], out.error[rows], out.extrapolated[rows] = found.seconds, found.error, found.extrapolated
    return out


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """The larger of FLOPs over peak and bytes over bandwidth."""
    devices, (b, m, n, k) = devices_of(frame, catalog), sizes_of(frame)
    out = np.full(len(frame), np.nan)
    for (name, dtype, _), rows in _groups(frame).items():
        form = format_of(dtype, devices[name]) if name in devices else None
        if form is not None:
            flops = 2 * (b * m * n * k)[rows] / devices[name].flop_per_s[form.peak]
            moved = (b * (form.a_B * m * k + form.b_B * k * n + form.c_B * m * n))[rows]
            out[rows] = np.maximum(flops, moved / devices[name].memory_B_per_s)
    return out


def _groups(frame: "pd.DataFrame") -> dict[tuple[str, str, str | None], np.ndarray]:
    """Positions of the rows of each device, dtype and library."""
    found: dict[tuple[str, str, str | None], list[int]] = {}
    for i, key in enumerate(zip(frame["device"].map(str), frame["dtype"].map(str), libraries(frame), strict=True)):
        found.setdefault(key, []).append(i)
    return {key: np.array(rows) for key, rows in found.items()}


TABLE = TableSpec(
    columns=("device", "dtype", "batch", "m", "n", "k", "latency_s"),
    numbers=("m", "n", "k", "latency_s"),
    measured="latency_s",
    groups=("device", "dtype", "source"),
    predict=predict,
    roofline=roofline,
)
