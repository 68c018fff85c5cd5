"""How long a kernel takes on a device: measured if the device was calibrated, otherwise a roofline with tiles and waves."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costmodels import measured
from costmodels.efficiency import Efficiency, efficiency
from costmodels.kernels import WIDTH_B, Kernel, attended_pairs, nbytes
from costmodels.specs import DeviceSpec, Estimate

Floats = NDArray[np.float64]
FALLBACK = {
    "tf32": "float32",
    "bfloat16": "float32",
    "float16": "float32",
    "fp8": "bfloat16",
    "int8": "float16",
    "int4": "int8",
}
"""Where a device has no arithmetic of a dtype, it converts and uses that of another."""

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (32, 64), (64, 32), (16, 64))
"""Output tiles that libraries have kernels for, rows and columns."""


def native_dtype(dtype: str, device: DeviceSpec) -> str:
    """The dtype whose arithmetic the device uses for `dtype`."""
    while dtype not in device.flop_per_s:
        if dtype not in FALLBACK:
            return next(iter(device.flop_per_s))
        dtype = FALLBACK[dtype]
    return dtype


def estimate(kernel: Kernel, device: DeviceSpec) -> Estimate:
    """Seconds for all `kernel.count` launches on `device`."""
    return _estimate(kernel, device)


@lru_cache(maxsize=65536)
def _estimate(kernel: Kernel, device: DeviceSpec) -> Estimate:
    if device.measured:
        known = measured.kernel_seconds(kernel, device)
        if known is not None:
            return Estimate(seconds=known, method="measured", source=f"{device.name}, calibrated")
    native = native_dtype(kernel.dtype, device)
    source = device.sources.get(f"flop_per_s.{native}", "catalogue")
    if native != kernel.dtype:
        source += f"; {kernel.dtype} computed as {native}"
    once = _launch(kernel, native, device, efficiency(device))
    return Estimate(seconds=kernel.count * once, method="roofline", source=source, error=0.25)


def seconds(kernels: Iterable[Kernel], device: DeviceSpec) -> float:
    """Kernels one after the other."""
    return sum(estimate(k, device).seconds for k in kernels)


def _launch(kernel: Kernel, native: str, device: DeviceSpec, e: Efficiency) -> float:
    s = dict(kernel.shape)
    if kernel.name == "gemm":
        return float(gemm_seconds(device, kernel.dtype, s.get("batch", 1), s["m"], s["n"], s["k"]))
    if kernel.name in ("attention", "attention_backward"):
        return _attention_seconds(kernel, native, device, e)
    return device.launch_s + memory_seconds(nbytes(kernel) / kernel.count, device, e)


def memory_seconds(size_B: ArrayLike, device: DeviceSpec, e: Efficiency) -> float:
    """Seconds to stream `size_B` once through memory, or through the L2 cache if it stays there.

    Bandwidth builds up with the number of bytes in flight: a transfer of `e.ramp_B` reaches half of it.
    """
    size = float(np.asarray(size_B))
    rate = device.memory_B_per_s * e.bandwidth
    cached = min(1.0, (device.l2_B or 0.0) * e.l2_share / size) if size else 1.0
    return size * ((1 - cached) + cached / e.l2_speedup) / rate + e.ramp_s


def gemm_seconds(device: DeviceSpec, dtype: str, batch: ArrayLike, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> Floats:
    """Seconds of C[m, n] = A[m, k] B[k, n], `batch` times at once; arguments broadcast, the result has their shape.

    The fastest of the tile shapes and splits of k that libraries offer: waves of tiles over the multiprocessors, each tile at
    the rate its shape reaches, and no faster than operands and result cross memory.
    """
    e, native = efficiency(device), native_dtype(dtype, device)
    b, m, n, k = (np.asarray(x, dtype=np.float64) for x in (batch, m, n, k))
    peak = device.flop_per_s[native] * e.peak(native)
    width = WIDTH_B[dtype]
    units = float(device.units or 1)
    moved = width * b * (m * k + k * n + m * n)
    traffic = moved / (device.memory_B_per_s * e.bandwidth)
    best = np.full(np.broadcast_shapes(b.shape, m.shape, n.shape, k.shape), np.inf)
    for rows, cols in TILES:
        share = _tile_rate(rows, cols, e.vector_half if native == "float32" else e.tile_half)
        for splits in (1.0, 2.0, 4.0, 8.0):
            depth = np.maximum(np.ceil(k / splits / e.k_step) * e.k_step, 4 * e.k_step)
            tiles = b * np.ceil(m / rows) * np.ceil(n / cols) * splits
            waves = np.ceil(tiles / units)
            busy = waves * (2.0 * rows * cols * (depth + e.k_fill)) / (peak * share / units)
            partial = 0.0 if splits == 1.0 else (splits * 2 * 4.0 * b * m * n) / (device.memory_B_per_s * e.bandwidth)
            best = np.minimum(best, (busy**e.sharp + (traffic + partial) ** e.sharp) ** (1 / e.sharp))
    return np.asarray(best + e.ramp_s + device.launch_s, dtype=np.float64)


def _tile_rate(rows: int, cols: int, half: float) -> float:
    """Share of the peak a tile reaches: operands a multiprocessor loads for each multiply shrink with the tile's harmonic mean."""
    mean = 2.0 * rows * cols / (rows + cols)
    return mean / (mean + half)


def _attention_seconds(kernel: Kernel, native: str, device: DeviceSpec, e: Efficiency) -> float:
    """Flash attention: blocks of queries by heads over the multiprocessors; decoding splits the keys instead (Dao 2023)."""
    s = dict(kernel.shape)
    backward = kernel.name.endswith("backward")
    units = float(device.units or 1)
    block = 128.0 if s["q_len"] > 64 else 64.0 if s["q_len"] > 16 else 16.0
    blocks = s["batch"] * s["heads"] * np.ceil(s["q_len"] / block)
    if s["q_len"] <= 16:  # one query block for each group of heads, keys in chunks so that no multiprocessor is idle
        blocks = s["batch"] * s["kv_heads"] * np.ceil(s["kv_len"] / 256.0)
    pairs = attended_pairs(s) * (np.ceil(s["q_len"] / block) * block / s["q_len"] if s["q_len"] > 16 else 1.0)
    products = 5.0 if backward else 2.0
    work = products * 2.0 * s["batch"] * s["heads"] * s["head_dim"] * pairs
    occupancy = blocks / (np.ceil(blocks / units) * units)
    share = e.attention * (0.8 if backward else 1.0) * (s["head_dim"] / (s["head_dim"] + e.head_half))
    busy = work / (device.flop_per_s[native] * e.peak(native) * share * max(occupancy, 1e-3))
    moved = memory_seconds(nbytes(kernel) / kernel.count, device, e)
    return float(device.launch_s + (busy**e.sharp + moved**e.sharp) ** (1 / e.sharp))
