"""Attention on any device: which kernel a library takes for a shape, its parameters, its time and how far to trust it.

`costmodels.attention_kernels` has the formulas, `costmodels.attention_parameters` what is fitted to measurements of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from costmodels.arithmetic import native_dtype
from costmodels.attention_kernels import KERNELS, Hardware, Shape
from costmodels.attention_parameters import NARROW, bands, family, keys, lookup, multiplied, uses_lanes
from costmodels.fitted import load
from costmodels.kernels import WIDTH_B
from costmodels.prediction import Bools, Floats, Prediction
from costmodels.ranges import outside
from costmodels.specs import DeviceSpec

LIBRARIES = ("cudnn", "flash2", "flash3", "flash4", "pytorch", "sglang", "triton", "trtllm", "vllm")
"""Whose kernels are known apart: FlashAttention by its major version, the serving engines by whatever they choose."""

DECODE_ROWS = 16
"""Queries of a sequence up to which a decoding kernel is taken."""


def predict(
    device: DeviceSpec,
    dtype: str,
    batch: ArrayLike,
    q_len: ArrayLike,
    kv_len: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    head_dim: ArrayLike,
    causal: ArrayLike,
    *,
    kv_dtype: str | None = None,
    library: str | None = None,
    backward: bool = False,
    warm: bool = False,
    fitted: Mapping[str, Any] | None = None,
) -> Prediction:
    """softmax(Q K^T) V of `batch` sequences; sizes broadcast, the result has their shape. Unknown dtypes give NaN.

    `causal` queries are the last of the keys. `kv_dtype` is that of the cache (None: as `dtype`). `library` is one of `LIBRARIES`;
    None is the fastest that was measured on the device's family (`best` in the fitted table). `warm` says that small caches
    are still in L2 when decoding starts, as when a benchmark repeats one launch; in a model other layers come between.
    `fitted` is the content of `costmodels/fitted/attention.yaml` unless given.
    """
    given = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (batch, q_len, kv_len, heads, kv_heads, head_dim)), causal
    )
    sizes = [np.atleast_1d(x) for x in given]
    out = Prediction.plain(np.full(sizes[0].shape, np.nan))
    cache = kv_dtype or dtype
    if dtype in WIDTH_B and cache in WIDTH_B:
        table = load("attention") if fitted is None else fitted
        library = library or table["best"].get(family(device))
        kinds = _kinds(device, cache, library, sizes, backward)
        for kind in dict.fromkeys(kinds.flat):
            rows = kinds == kind
            shape = _shape([s[rows] for s in sizes], dtype, cache, backward, warm)
            names = (device, str(kind), dtype, cache, library)
            _fill(out, rows, _shipped(*names) if fitted is None else _known(*names, table), str(kind), shape, table)
    form = given[0].shape
    return Prediction(
        seconds=out.seconds.reshape(form), error=out.error.reshape(form), extrapolated=out.extrapolated.reshape(form)
    )


def _shape(sizes: list[Floats], dtype: str, cache: str, backward: bool, warm: bool) -> Shape:
    batch, q_len, kv_len, heads, kv_heads, head_dim, causal = sizes
    return Shape(
        batch=batch,
        q_len=q_len,
        kv_len=kv_len,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query_B=max(WIDTH_B[dtype], 2.0),  # queries come and results go in 16 bits
        cache_B=WIDTH_B[cache],
        causal=causal.astype(np.bool_),
        backward=backward,
        warm=warm,
    )


def _kinds(
    device: DeviceSpec, cache: str, library: str | None, sizes: list[Floats], backward: bool
) -> "np.ndarray[Any, Any]":
    """(rows,) names of kernels."""
    batch, q_len, kv_len, heads, kv_heads = sizes[:5]
    narrow = NARROW.get(cache) == "byte"
    lanes = uses_lanes(library, family(device), narrow, device.units or 1, kv_len, batch * kv_heads, heads / kv_heads)
    decodes = (q_len <= DECODE_ROWS) & (q_len < kv_len) & (not backward)
    return np.where(decodes, np.where(lanes, "vector_decode", "decode"), "prefill")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of a kernel before its sizes: data sheet, parameters, error bands, and whether it was measured."""

    hardware: Hardware
    parameters: Mapping[str, float]
    inside: float
    beyond: float
    measured: bool


def _known(
    device: DeviceSpec, kind: str, dtype: str, cache: str, library: str | None, table: Mapping[str, Any]
) -> _Known:
    of = family(device)
    computed = multiplied(dtype, cache, of, library) if kind == "prefill" else dtype
    where = keys(kind, of, dtype, cache, library)
    inside, beyond, measured = bands(table, where)
    seen = device.name in table["devices"].get(kind, ())
    return _Known(
        hardware=hardware(device, computed),
        parameters=lookup(table["parameters"], where),
        inside=inside if seen else float(np.sqrt(inside * beyond)),
        beyond=beyond,
        measured=measured and seen,
    )


@lru_cache(maxsize=1024)
def _shipped(device: DeviceSpec, kind: str, dtype: str, cache: str, library: str | None) -> _Known:
    return _known(device, kind, dtype, cache, library, load("attention"))


def _fill(out: Prediction, rows: Bools, known: _Known, kind: str, shape: Shape, table: Mapping[str, Any]) -> None:
    """Write the rows of one kernel."""
    out.seconds[rows] = KERNELS[kind](known.hardware, shape, known.parameters)
    far = outside(table, kind, batch=shape.batch, kv_len=shape.kv_len, heads=shape.heads, head_dim=shape.head_dim)
    out.extrapolated[rows] = far | (not known.measured)
    out.error[rows] = np.where(far, known.beyond, known.inside)


@lru_cache(maxsize=256)
def hardware(device: DeviceSpec, dtype: str) -> Hardware:
    """The numbers of a device that count; where a data sheet does not give one, its limit never binds."""
    return Hardware(
        flop_per_s=device.flop_per_s[native_dtype(dtype, device)],
        B_per_s=device.memory_B_per_s,
        units=float(device.units or 1),
        clock_hz=device.clock_hz or np.inf,
        l2_B=device.l2_B or 1.0,
        launch_s=device.launch_s,
    )
