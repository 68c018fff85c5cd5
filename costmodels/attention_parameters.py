"""Parameters of attention for a device, a data type and a library: typical values times what each of them changes.

Every parameter is positive: exp(log typical + sum of effects). What was not measured of an architecture or a library has no
effect, so that the levels above it decide.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from costmodels.arithmetic import native_dtype
from costmodels.prediction import Bools
from costmodels.specs import DeviceSpec

TYPICAL: Mapping[str, Mapping[str, float]] = {
    "prefill": {
        "launch": 2.5,  # of the device's launch_s
        "tensor": 0.85,  # share of the tensor cores' peak between exponentials
        "softmax": 1.0,  # share of the exponentials' time that nothing hides
        "fill": 150.0,  # keys that starting and ending a block of queries is worth
        "longest": 0.8,  # share of the longest block that other blocks do not hide
        "uneven": 1.0,  # how sharply the longest block and all blocks compare, less one
        "query_passes": 1.5,  # times that queries and results cross memory: norms, rotation and copies of the library
        "key_passes": 1.0,  # the same of keys and values
        "cache": 2.0,  # bandwidth of the L2 cache over that of memory, less one
        "resident": 0.7,  # share of the L2 cache in which data of the last run remain
        "backward": 1.2,  # slowness of the backward pass beyond its five products
    },
    "decode": {
        "launch": 3.0,
        "stream": 0.9,  # share of memory bandwidth in long streams
        "cache": 2.0,
        "resident": 0.7,
        "lanes": 250.0,  # elements of keys and values, each times a query head, in a cycle of a multiprocessor
        "token": 8.0,  # cycles that a block takes for a key
        "splits": 8.0,  # most blocks that a sequence is split over
        "occupancy": 1.5,  # blocks of a multiprocessor that splitting aims at
        "uneven": 2.0,
    },
    "vector_decode": {
        "launch": 4.0,
        "stream": 0.95,
        "cache": 2.0,
        "resident": 0.7,
        "lanes": 12.0,
        "token": 20.0,
        "splits": 32.0,
        "occupancy": 0.6,
        "uneven": 1.0,
    },
}

NARROW: Mapping[str, str] = {"float32": "single", "tf32": "single", "fp8": "byte", "int8": "byte"}
"""Data types by width; 16 bits where nothing is said."""


ASYNCHRONOUS = ("hopper", "blackwell")
"""Families whose tensor cores work on operands in shared memory while a warp does something else (wgmma, tcgen05)."""


def family(device: DeviceSpec) -> str:
    """Devices that run the same kernels: an architecture, but its graphics chips, with less than half of the tensor cores in a
    multiprocessor (Ampere's 8.6, Blackwell's 12.0), for themselves."""
    peak = device.flop_per_s[native_dtype("bfloat16", device)]
    small = peak < 1500.0 * (device.units or 1) * (device.clock_hz or 0.0)
    return (
        f"{device.architecture}_graphics"
        if small and device.architecture in ("ampere", "blackwell")
        else device.architecture
    )


def keys(kind: str, family: str, dtype: str, cache_dtype: str, library: str | None) -> dict[str, str]:
    """The key at each level, from the general to the special."""
    form = f"{NARROW.get(dtype, 'half')}/{NARROW.get(cache_dtype, 'half')}"
    generation = "asynchronous" if family in ASYNCHRONOUS else "synchronous"
    found = {
        "kind": kind,
        "format": f"{kind}/{form}",
        "generation": f"{kind}/{generation}",
        "family": f"{kind}/{family}",
    }
    if library is not None:
        found |= {"library": f"{kind}/{library}", "kernel": f"{kind}/{form}/{family}/{library}"}
    return found


def lookup(effects: Mapping[str, Any], where: Mapping[str, str]) -> dict[str, float]:
    """Values by name at the levels of `where`, which `keys` made."""
    logs = {name: float(np.log(value)) for name, value in TYPICAL[where["kind"]].items()}
    for level, key in where.items():
        for name, effect in effects.get(level, {}).get(key, {}).items():
            logs[name] += effect
    return {name: float(np.exp(value)) for name, value in logs.items()}


def uses_lanes(
    library: str | None, family: str, narrow_cache: bool, units: Any, kv_len: Any, blocks: Any, group: Any
) -> Bools:
    """Where a library decodes without tensor cores. `blocks` is batch x kv_heads, `group` the query heads that share keys.

    TensorRT-LLM (1.0 to 1.3) has tensor-core kernels (XQA) for 2 to 32 heads that share keys and takes them where there is at
    least a block for every 4 multiprocessors (its `mayHavePerfGain`), a sequence being split into chunks of 128 keys. Read off the
    measured times, which differ by factors: with an 8-bit cache Hopper always takes them and others do not split; on Blackwell
    there are none.
    """
    if library != "trtllm":
        return np.zeros(np.shape(blocks), dtype=np.bool_)
    shared = (np.asarray(group) >= 2) & (np.asarray(group) <= 32)
    if family == "blackwell":
        return np.ones(shared.shape, dtype=np.bool_)
    if family == "hopper" and narrow_cache:
        return ~shared
    chunks = 1.0 if narrow_cache else np.floor(np.asarray(kv_len) / 128.0)
    return np.asarray(~shared | (4.0 * np.asarray(blocks) * chunks < units))


def multiplied(dtype: str, cache_dtype: str, family: str, library: str | None) -> str:
    """The dtype that prefill multiplies in: TensorRT-LLM on Hopper takes 8-bit products as soon as the cache has 8 bits."""
    if library == "trtllm" and family == "hopper" and NARROW.get(cache_dtype) == "byte":
        return cache_dtype
    return dtype


def bands(fitted: Mapping[str, Any], where: Mapping[str, str]) -> tuple[float, float, bool]:
    """Relative error inside of the measured sizes, outside of them, and whether these kernels were measured on the device."""
    error = fitted["error"]
    unseen = float(error["unseen"].get(where["kind"], 0.5))
    for level in ("kernel", "family"):
        if where.get(level) in error.get(level, {}):
            seen = float(error[level][where[level]])
            return seen, max(seen, unseen), True
    return unseen, unseen, False
