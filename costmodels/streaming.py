"""Kernels that compute little and move much: elementwise operators, norms, softmax, optimizers, casts."""

import numpy as np
from numpy.typing import ArrayLike

from costmodels.efficiency import Efficiency
from costmodels.specs import DeviceSpec


def memory_seconds(size_B: ArrayLike, device: DeviceSpec, e: Efficiency) -> float:
    """Seconds to stream `size_B` once through memory, or through the L2 cache if it stays there.

    Bandwidth builds up with the number of bytes in flight: a transfer of `e.ramp_B` reaches half of it.
    """
    size = float(np.asarray(size_B))
    rate = device.memory_B_per_s * e.bandwidth
    cached = min(1.0, (device.l2_B or 0.0) * e.l2_share / size) if size else 1.0
    return size * ((1 - cached) + cached / e.l2_speedup) / rate + e.ramp_s
