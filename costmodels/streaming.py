"""Kernels that compute little and move much: elementwise operators, norms, softmax, optimizers, casts.

A stream takes the bytes that it reads and writes over the shares of the data sheet's bandwidth that a device reaches for each, or
its arithmetic where that is slower. Kernels that work row by row (norms, softmax) have two more limits, both of PyTorch's kernels:

- A row is read once for its statistics and once more to write the result (softmax: twice more). The later readings come from the L2
  cache as long as all rows in flight fit into it, otherwise from memory.
- A block of threads takes a fixed number of cycles to start on a row and more for every 16 bytes that each of its threads loads.

The parameters are in `costmodels/fitted/elementwise.yaml`: for a device, for its architecture, or for all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from costmodels import fitted as fitted_tables
from costmodels.kernels import WIDTH_B, moved_B
from costmodels.prediction import Bools, Floats, Prediction
from costmodels.specs import DeviceSpec

READS: Mapping[str, float] = {
    "add": 2 / 3,
    "silu_mul": 2 / 3,
    "silu_mul_backward": 3 / 5,
    "gelu_backward": 2 / 3,
    "rmsnorm_backward": 2 / 3,
    "layernorm_backward": 2 / 3,
    "adamw": 4 / 7,
    "sgd": 2 / 3,
    "cast": 2 / 3,
    "zero": 0.0,
    "amax": 1.0,
    "mul": 2 / 3,
    "mul_backward": 3 / 5,
    "softmax_backward": 2 / 3,
    "relu_backward": 2 / 3,
    "tanh_backward": 2 / 3,
    "batch_norm": 2 / 3,
    "batch_norm_backward": 4 / 5,
    "sgd_momentum": 3 / 5,
    "gae": 9 / 17,
}
"""Share of a kernel's bytes that are read; half where nothing is said."""

NORMS = frozenset(("layernorm", "layernorm_backward", "rmsnorm", "rmsnorm_backward"))
SOFTMAX = frozenset(("softmax", "cross_entropy", "cross_entropy_backward"))

MEASURED = frozenset(("add", "gelu", "layernorm", "softmax"))
"""Kernels whose bytes and passes are those of an operator that was measured."""

LOAD_B = 16.0  # bytes that a thread loads at a time
WARP_COLS = 1024.0  # longest row that PyTorch's softmax keeps in the registers of a warp
NORM_THREADS = 128.0
L2_SHARE = 0.5  # of the L2 cache that data of the kernel before may fill; assumption: the other half holds the result
L2_SPEEDUP = 2.5  # of the L2 cache over memory; assumption: the ratio of NVIDIA's data centre devices since 2017


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """How the blocks of a row kernel work; arrays of one shape."""

    in_flight: Floats  # rows on the device at a time
    rereads: float | Floats  # times that a row is read again
    cycles: Floats  # from the start of a row to its end


def predict(
    device: DeviceSpec,
    name: str,
    dtype: str,
    sizes: Mapping[str, ArrayLike],
    *,
    fitted: Mapping[str, Any] | None = None,
) -> Prediction:
    """One launch of the kernel `name` of `costmodels.kernels`; `sizes` are its shape by name, arrays that broadcast.

    Seconds include the device's own time to start a kernel, not what a program in Python adds to it.
    """
    table = fitted_tables.load("elementwise") if fitted is None else fitted
    given = {key: np.asarray(value, dtype=np.float64) for key, value in sizes.items()}
    moved = np.asarray(moved_B(name, dtype, given), dtype=np.float64)
    reads = _read_share(name, dtype, given)
    if name in NORMS or name in SOFTMAX:
        cols = given["vocab"] if name.startswith("cross_entropy") else given["cols"]
        found = row_seconds(device, table, name in NORMS, given["rows"], cols, WIDTH_B[dtype], reads * moved, moved)
    else:
        found = stream_seconds(device, table, reads * moved, moved - reads * moved)
    seen = name in MEASURED and dtype == "float32"
    kind = "norm" if name in NORMS else "softmax" if name in SOFTMAX else "pointwise"
    return trusted(device, table, kind, np.asarray(found + device.launch_s), moved, seen=seen)


def _read_share(name: str, dtype: str, s: Mapping[str, Any]) -> Any:
    if name == "stream":
        return s["reads"] / np.maximum(s["reads"] + s["writes"], 1.0)
    if name == "cast" and "bits" in s:
        return WIDTH_B[dtype] / (WIDTH_B[dtype] + s["bits"] / 8)
    return READS.get(name, 0.5)


def parameters_of(device: DeviceSpec, table: Mapping[str, Any]) -> dict[str, float]:
    """Parameters by name: of all devices, replaced by those of the architecture, of the device, of its catalogue entry."""
    known = table["parameters"]
    architecture = known["architectures"].get(device.architecture, {})
    return {**known["default"], **architecture, **known["devices"].get(device.name, {}), **device.efficiency}


def stream_seconds(
    device: DeviceSpec, table: Mapping[str, Any], read_B: ArrayLike, written_B: ArrayLike, flops: ArrayLike = 0.0
) -> Floats:
    """Seconds to read and write so much and to compute `flops` meanwhile, after the kernel's start.

    What fits into half of the L2 cache is taken to be there still, or to stay there.
    """
    p = parameters_of(device, table)
    read, written = np.asarray(read_B, dtype=np.float64), np.asarray(written_B, dtype=np.float64)
    moved = (read / p["read_share"] + written / p["write_share"]) / device.memory_B_per_s
    cached = np.maximum(0.0, 1.0 - (read + written) / (L2_SHARE * (device.l2_B or 1.0)))
    computed = np.asarray(flops, dtype=np.float64) / device.flop_per_s.get("float32", np.inf)
    return np.asarray(np.maximum(moved * (1.0 - cached * (1.0 - 1.0 / L2_SPEEDUP)), computed))


def row_seconds(
    device: DeviceSpec,
    table: Mapping[str, Any],
    norm: bool,
    rows: ArrayLike,
    cols: ArrayLike,
    width_B: float,
    read_B: ArrayLike,
    moved_B: ArrayLike,
) -> Floats:
    """Seconds of a norm or a softmax over rows of `cols` elements that reads `read_B` of `moved_B` if each row is read once."""
    p = parameters_of(device, table)
    cols, read = np.asarray(cols, dtype=np.float64), np.asarray(read_B, dtype=np.float64)
    plan = norm_plan(device, p, cols, width_B) if norm else softmax_plan(device, p, cols, width_B)
    missed = np.zeros(())
    if device.l2_B:
        fill = plan.in_flight * cols * width_B / device.l2_B
        missed = np.clip((fill - p["cache_low"]) / (p["cache_high"] - p["cache_low"]), 0.0, 1.0)
    streamed = stream_seconds(device, table, read * (1.0 + plan.rereads * missed), np.asarray(moved_B) - read)
    waves = np.maximum(np.asarray(rows, dtype=np.float64) / plan.in_flight, 1.0)
    busy = waves * plan.cycles * p["row_cycles"] / (device.clock_hz or np.inf)
    return together(streamed, busy, p["sharp"])


def norm_plan(device: DeviceSpec, p: Mapping[str, float], cols: Floats, width_B: float) -> RowPlan:
    """PyTorch's vectorised layer norm: 128 threads a row, one pass for mean and variance and one that writes."""
    steps = np.ceil(cols * width_B / (NORM_THREADS * LOAD_B))
    in_flight = np.full(cols.shape, (device.units or 1) * resident_threads(device) / NORM_THREADS)
    return RowPlan(in_flight=in_flight, rereads=1.0, cycles=p["norm_start"] + p["norm_step"] * steps)


def softmax_plan(device: DeviceSpec, p: Mapping[str, float], cols: Floats, width_B: float) -> RowPlan:
    """PyTorch's softmax: a warp holds a row of up to 1,024 elements (rounded up to a power of two); longer rows have a block.

    A block has the largest power of two of threads that is at most half of the loads of a row, or 512, makes three passes (maximum,
    sum, result), and goes through what is left over after whole loads element by element.
    """
    loads = np.clip(np.floor(cols * width_B / LOAD_B), 64.0, 1024.0)
    block = 2.0 ** np.ceil(np.log2(loads / 2))
    whole = np.floor(cols * width_B / (LOAD_B * block))
    steps = whole + np.ceil(cols / block - whole * LOAD_B / width_B)
    in_warp = cols <= WARP_COLS
    held = 2.0 ** np.ceil(np.log2(np.maximum(cols, 32.0))) / WARP_COLS
    threads = (device.units or 1) * resident_threads(device)
    return RowPlan(
        in_flight=threads / np.where(in_warp, 32.0, block),
        rereads=np.where(in_warp, 0.0, 2.0),
        cycles=np.where(in_warp, p["warp_row"] * held, p["softmax_start"] + p["softmax_step"] * steps),
    )


def resident_threads(device: DeviceSpec) -> float:
    """Threads that a multiprocessor holds (CUDA programming guide, compute capabilities): 1,024 on Turing, 1,536 on Ampere's
    graphics chips, which have 128 float32 lanes where the A100 has 64, and on Ada, 2,048 elsewhere."""
    if device.architecture == "turing":
        return 1024.0
    lanes = device.flop_per_s.get("float32", 0.0) / (2.0 * (device.units or 1) * (device.clock_hz or np.inf))
    graphics = device.architecture == "ada" or (device.architecture == "ampere" and lanes > 96.0)
    return 1536.0 if graphics else 2048.0


def together(a: ArrayLike, b: ArrayLike, sharp: float) -> Floats:
    """Two limits at once: near the larger of the two, up to 2^(1 / sharp) of it where they are equal."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    share = np.divide(low, high, out=np.zeros(high.shape), where=high > 0)
    return np.asarray(high * (1.0 + share**sharp) ** (1.0 / sharp), dtype=np.float64)


def trusted(
    device: DeviceSpec, table: Mapping[str, Any], kind: str, seconds: Floats, moved: Floats, *, seen: bool
) -> Prediction:
    """A prediction with the band of what was measured, or of a device that was left out where device, kernel or size is new."""
    low, high = table["parameters"]["range_B"]
    new: Bools = np.asarray((moved < low / 2) | (moved > high * 2))
    if not seen or device.name not in table["parameters"]["devices"]:
        new = np.ones_like(new)
    error = np.where(new, table["error"]["unseen"][kind], table["error"]["seen"][kind])
    new, error = (np.broadcast_to(x, seconds.shape).copy() for x in (new, error))
    return Prediction(seconds=seconds, error=error, extrapolated=new)
