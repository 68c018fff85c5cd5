"""Attention: two products with a softmax between them that never leave the multiprocessor."""

import numpy as np

from costmodels.efficiency import Efficiency
from costmodels.kernels import Kernel, attended_pairs, nbytes
from costmodels.specs import DeviceSpec
from costmodels.streaming import memory_seconds


def attention_seconds(kernel: Kernel, native: str, device: DeviceSpec, e: Efficiency) -> float:
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
