"""Matrix products: tiles in waves over the multiprocessors, or operands through memory, whichever is slower."""

import numpy as np
from numpy.typing import ArrayLike

from costmodels.arithmetic import native_dtype
from costmodels.efficiency import efficiency
from costmodels.kernels import WIDTH_B
from costmodels.prediction import Floats, Prediction
from costmodels.specs import DeviceSpec

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (32, 64), (64, 32), (16, 64))
"""Output tiles that libraries have kernels for, rows and columns."""


def predict(device: DeviceSpec, dtype: str, batch: ArrayLike, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> Prediction:
    """C[m, n] = A[m, k] B[k, n], `batch` times at once; arguments broadcast, the result has their shape."""
    return Prediction.plain(gemm_seconds(device, dtype, batch, m, n, k))


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
