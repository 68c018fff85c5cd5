"""Kernels as they run in a training job, rather than by themselves in a benchmark."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from costmodels import compute, fitted
from costmodels.arithmetic import native_dtype
from costmodels.checkpoint import is_checkpoint
from costmodels.generation_work import is_generation
from costmodels.kernels import LOGPROBS, Kernel
from costmodels.libraries import Libraries
from costmodels.specs import DeviceSpec, Estimate
from costmodels.transformer_kernels import NARROW
from simcore.training.overheads import Overheads

PEAKS = {"nvfp4": "fp4"}
"""Formats whose peak has another name."""

TABLES = {
    "products": "gemm",
    "narrow": "gemm",
    "attention": "attention",
    "streaming": "elementwise",
    "serving": "serving",
    "checkpoint": "checkpoint",
    "released": "casts as released",
}
"""The fitted table behind each kind of kernel."""


@lru_cache(maxsize=1)
def usual() -> Overheads:
    """What published jobs had on the whole."""
    return Overheads.read(fitted.load("training")["parameters"])


def kind_of(kernel: Kernel) -> str:
    """The kind of kernel by which factors are told apart: products, narrow, attention, streaming, or serving, checkpoint and
    released, which have none."""
    if is_generation(kernel.name):
        return "serving"
    if is_checkpoint(kernel.name):
        return "checkpoint"
    if kernel.name == "released_cast":
        return "released"
    if kernel.name in LOGPROBS:
        return "products"
    if kernel.name == "gemm":
        return "narrow" if kernel.dtype in NARROW.values() else "products"
    return "attention" if kernel.name.startswith("attention") else "streaming"


def estimate(
    kernel: Kernel, device: DeviceSpec, overheads: Overheads, libraries: Libraries = compute.UNNAMED
) -> Estimate:
    """As `costmodels.compute.estimate`, times the factor of its kind, but for what was measured on the device itself.

    Products of fewer than 16 bits take operands that casts before them have narrowed, and reach as much of their peak as 16-bit
    ones, as cuBLAS' do in training; kernels of inference engines, which measurements are of, narrow their operands themselves.
    """
    kind = kind_of(kernel)
    found = compute.estimate(kernel, device, libraries)
    if found.method == "measured":
        return found
    if kind == "narrow":
        wide = compute.estimate(replace(kernel, dtype="bfloat16"), device, libraries)
        found = replace(wide, seconds=wide.seconds * _peak(device, "bfloat16") / _peak(device, kernel.dtype))
    return replace(found, seconds=found.seconds * _factor(overheads, kind))


def seconds_each(
    kernels: Sequence[Kernel], device: DeviceSpec, overheads: Overheads, libraries: Libraries = compute.UNNAMED
) -> NDArray[np.float64]:
    """(kernels,) seconds of each as `estimate`, with the fitted models asked once for all."""
    if device.measured:
        return np.array([estimate(k, device, overheads, libraries).seconds for k in kernels])
    kinds = [kind_of(k) for k in kernels]
    factors = [_factor(overheads, kind) for kind in kinds]
    asked = list(kernels)
    for i, (k, kind) in enumerate(zip(kernels, kinds, strict=True)):
        if kind == "narrow":
            asked[i] = replace(k, dtype="bfloat16")
            factors[i] *= _peak(device, "bfloat16") / _peak(device, k.dtype)
    return np.asarray(compute.seconds_each(asked, device, libraries) * np.array(factors), dtype=np.float64)


def _factor(overheads: Overheads, kind: str) -> float:
    """Engines and checkpoints were measured at work, and what was released is taken as it is: they need no factor."""
    return 1.0 if kind in ("serving", "checkpoint", "released") else float(getattr(overheads, kind))


def _peak(device: DeviceSpec, dtype: str) -> float:
    return device.flop_per_s[native_dtype(PEAKS.get(dtype, dtype), device)]
