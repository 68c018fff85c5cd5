"""Parameters of the GEMM model for a device, a format and a library: typical values times what each of them changes.

Every parameter is positive: exp(log typical + sum of effects), an effect for each level at which kernels differ. What was not
measured of a device (or of its architecture, or of a library) has no effect, so that the levels above it decide.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from costmodels.specs import DeviceSpec

Parameters = Mapping[str, Any]
"""Floats, or (rows,) arrays, by parameter name."""

TYPICAL: Mapping[str, float] = {
    "peak": 0.85,  # share of the peak that large tiles reach
    "energy_J": 1.0e-12,  # for each FLOP at full clock, in the process of `PROCESS_ENERGY` 1
    "heat_s": 1e-3,  # how long a product is to meet half of what power takes from the clock
    "half": 24.0,  # tile edge at which a multiprocessor reaches half of its rate
    "least": 64.0,  # of k that kernels work through, however short k is
    "wide": 0.02,  # how much longer a very wide result takes, whose rows lie on pages of their own
    "fill": 128.0,  # elements of k it takes to fill and drain the pipeline
    "wave": 2.0,  # odds of an incomplete wave to cost a whole one
    "join": 0.3,  # launches that it takes to add up parts of k
    "stream": 0.85,  # share of memory bandwidth in long streams
    "cache": 2.5,  # bandwidth of the L2 cache over that of memory
    "resident": 0.3,  # share of the L2 cache in which operands of the last run remain
    "reread": 0.3,  # share of panels that are read again where they do not fit
    "launch": 1.0,  # of the device's launch_s
    "timer": 4.0,  # of launch_s: what a host's timer adds to measurements of some libraries
    "narrow": 0.3,  # passes over the activations to narrow them
    "sharp": 2.0,  # how well computing and memory traffic overlap, less one
}


GRAPHICS_RATIO = 5.0
"""Dies made for graphics have matrix units of less than so many times the float32 rate (GA10x, AD10x, GB20x: 2 to 4)."""

WIDE_LANES = 100.0
"""A multiprocessor with more float32 lanes than that spends every issue slot on them; loads must share (128, not 64)."""


def keys(device: DeviceSpec, kind: str, library: str | None) -> dict[str, str]:
    """The key at each level, from the general to the special."""
    name = device.name
    found = {"all": "all", "kind": kind, "family": f"{family(device, kind)}/{kind}", "device": f"{name}/{kind}"}
    if library is not None:
        found |= {"library": f"{library}/{kind}", "device_library": f"{name}/{kind}/{library}"}
    return found


def family(device: DeviceSpec, kind: str) -> str:
    """What devices whose kernels behave alike have in common: the architecture, or what its multiprocessors are made for."""
    float32 = device.flop_per_s.get("float32", np.inf)
    if kind == "vector":
        lanes = float32 / (2.0 * (device.units or 1) * (device.clock_hz or np.inf))
        dual_issue = device.architecture in ("maxwell", "pascal")
        return "wide" if lanes > WIDE_LANES and device.vendor == "nvidia" and not dual_issue else device.architecture
    half = device.flop_per_s.get("bfloat16", np.inf)
    return "graphics" if device.vendor == "nvidia" and half < GRAPHICS_RATIO * float32 else device.architecture


def lookup(parameters: Mapping[str, Any], where: Mapping[str, str]) -> dict[str, float]:
    """Values at the levels of `where`, which `keys` made."""
    logs = {name: float(np.log(value)) for name, value in TYPICAL.items()}
    for level, key in where.items():
        for name, effect in parameters.get(level, {}).get(key, {}).items():
            logs[name] += effect
    return {name: float(np.exp(value)) for name, value in logs.items()}


def bands(fitted: Mapping[str, Any], kind: str, where: Mapping[str, str]) -> tuple[float, float, bool]:
    """Relative error inside of the measured sizes and outside, and whether this kind was measured on the device."""
    error = fitted["error"]
    unseen = float(error["unseen"].get(kind, error["unseen"]["all"]))
    for level in ("device_library", "device"):
        if where.get(level) in error[level]:
            seen = float(error[level][where[level]])
            return seen, max(seen, unseen), True
    return unseen, unseen, False
