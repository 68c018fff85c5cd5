"""Attention: columns device, phase, batch, q_len, kv_len, heads, kv_heads, head_dim, dtype, latency_s (kv_dtype, source, causal,
backward). Without `causal` prefill is causal; `source` names the library."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels import attention
from costmodels.arithmetic import native_dtype
from costmodels.catalog import Catalog
from costmodels.kernels import WIDTH_B
from costmodels.prediction import Floats, Prediction
from costmodels.tables.table import Fitted, TableSpec, devices_of

if TYPE_CHECKING:
    import pandas as pd

SIZES = ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim")

WORDS: tuple[tuple[str, str], ...] = (
    (r"trt|tensorrt", "trtllm"),
    (r"vllm", "vllm"),
    (r"sglang", "sglang"),
    (r"flash(attention|-attention|_attn|infer)?[- _]?4|fa4", "flash4"),
    (r"flash(attention|-attention|_attn)?[- _]?3|fa3", "flash3"),
    (r"flash(attention|-attention|_attn)?[- _]?2|fa2", "flash2"),
    (r"cudnn", "cudnn"),
    (r"triton", "triton"),
    (r"pytorch|torch|standard", "pytorch"),
)
"""Words of a source, in any case, and the library that they name; the first that is found counts."""


def library_of(source: object) -> str | None:
    """One of `costmodels.attention.LIBRARIES`, None where the source names none."""
    text = str(source).lower()
    return next((library for words, library in WORDS if re.search(words, text)), None)


def described(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The columns that say which kernel a row ran, with defaults for those that lack."""
    known = frame[["device", "dtype"]].astype(str)
    cache = frame["kv_dtype"] if "kv_dtype" in frame.columns else frame["dtype"]
    source = frame["source"].astype(str) if "source" in frame.columns else frame["dtype"].map(lambda _: "")
    return known.assign(
        kv_dtype=cache.fillna(frame["dtype"]).astype(str),
        library=source.map({s: library_of(s) or "" for s in source.unique()}),
        causal=frame["causal"].fillna(True).astype(bool) if "causal" in frame.columns else True,
        backward=frame["backward"].fillna(False).astype(bool) if "backward" in frame.columns else False,
    )


def predict(frame: "pd.DataFrame", catalog: Catalog, fitted: Fitted | None = None) -> Prediction:
    """(rows,) seconds; NaN for devices and dtypes that are unknown."""
    devices = devices_of(frame, catalog)
    sizes = {s: frame[s].to_numpy(dtype=np.float64) for s in SIZES}
    out = Prediction.plain(np.full(len(frame), np.nan))
    for names, at in (
        described(frame).groupby(["device", "dtype", "kv_dtype", "library", "causal", "backward"]).indices.items()
    ):
        device, dtype, cache, library, causal, backward = _names(names)
        if device in devices:
            found = attention.predict(
                devices[device],
                dtype,
                **{s: size[at] for s, size in sizes.items()},
                causal=causal,
                kv_dtype=cache,
                library=library or None,
                backward=backward,
                warm=True,
                fitted=fitted,
            )
            out.seconds[at], out.error[at], out.extrapolated[at] = found.seconds, found.error, found.extrapolated
    return out


def _names(names: Any) -> tuple[str, str, str, str, bool, bool]:
    """A key of pandas' groups, whose type its stubs do not know."""
    device, dtype, cache, library, causal, backward = names
    return device, dtype, cache, library, bool(causal), bool(backward)


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """The larger of FLOPs over peak and bytes over bandwidth."""
    known, devices = described(frame), devices_of(frame, catalog)
    b, q, kv, h, hk, d = (frame[s].to_numpy(dtype=np.float64) for s in SIZES)
    names = list(zip(known["device"], known["dtype"], strict=True))
    rate = {n: devices[n[0]].flop_per_s[native_dtype(n[1], devices[n[0]])] for n in set(names) if n[0] in devices}
    peak = np.array([rate.get(n, np.nan) for n in names])
    bandwidth = known["device"].map({n: v.memory_B_per_s for n, v in devices.items()}).to_numpy(dtype=np.float64)
    seen = np.minimum(q, kv)
    pairs = np.where(known["causal"], seen * (kv - seen) + seen * (seen + 1) / 2, q * kv)
    products = np.where(known["backward"], 5.0, 2.0)
    widths = [known[c].map(WIDTH_B).to_numpy(dtype=np.float64) for c in ("dtype", "kv_dtype")]
    moved = 2 * b * d * (widths[0] * q * h + widths[1] * kv * hk) * np.where(known["backward"], 2.0, 1.0)
    return np.asarray(np.maximum(products * 2 * b * h * d * pairs / peak, moved / bandwidth), dtype=np.float64)


TABLE = TableSpec(
    columns=("device", "phase", "batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "dtype", "latency_s"),
    numbers=("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "latency_s"),
    measured="latency_s",
    groups=("device", "phase", "dtype", "source"),
    predict=predict,
    roofline=roofline,
)
