"""How long a kernel takes on a device: measured if the device was calibrated, otherwise what a fitted model says."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costmodels import attention, casts, checkpoint, gemm, generation, measured, operators, products, streaming
from costmodels.arithmetic import native_dtype
from costmodels.generation_work import is_generation
from costmodels.kernels import CONVOLUTIONS, LOGPROBS, Kernel
from costmodels.libraries import Libraries
from costmodels.prediction import Prediction
from costmodels.specs import DeviceSpec, Estimate

UNNAMED = Libraries()


def estimate(kernel: Kernel, device: DeviceSpec, libraries: Libraries = UNNAMED) -> Estimate:
    """Seconds for all `kernel.count` launches on `device`; `libraries` count where it was not measured itself."""
    return _estimate(kernel, device, libraries)


@lru_cache(maxsize=65536)
def _estimate(kernel: Kernel, device: DeviceSpec, libraries: Libraries) -> Estimate:
    if device.measured:
        of = generation.known_s if is_generation(kernel.name) else measured.kernel_seconds
        known = of(kernel, device)
        if known is not None:
            error = measured.spread(kernel, device)
            return Estimate(seconds=known, method="measured", source=f"{device.name}, calibrated", error=error)
    native = native_dtype(kernel.dtype, device)
    source = device.sources.get(f"flop_per_s.{native}", "catalogue")
    if native != kernel.dtype:
        source += f"; {kernel.dtype} computed as {native}"
    table, once = _predicted(device, kernel.name, kernel.dtype, dict(kernel.shape), libraries)
    library = getattr(libraries, table, None) if kernel.name not in (*CONVOLUTIONS, *LOGPROBS) else None
    return Estimate(
        seconds=kernel.count * float(once.seconds),
        method="fitted",
        source=f"fitted {table}{f' of {library}' if library else ''}; {source}",
        error=float(once.error),
        extrapolated=bool(once.extrapolated),
    )


def seconds(kernels: Iterable[Kernel], device: DeviceSpec) -> float:
    """Kernels one after the other."""
    return sum(estimate(k, device).seconds for k in kernels)


def seconds_each(kernels: Sequence[Kernel], device: DeviceSpec, libraries: Libraries = UNNAMED) -> NDArray[np.float64]:
    """(kernels,) what the fitted models say of each, `count` launches, in one call for all of a kind.

    As `estimate` for devices without measurements of their own, in a small part of the time.
    """
    alike: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
    for i, k in enumerate(kernels):
        alike.setdefault((k.name, k.dtype, tuple(name for name, _ in k.shape)), []).append(i)
    found = np.empty(len(kernels))
    for (name, dtype, names), rows in alike.items():
        sizes = np.array([[size for _, size in kernels[i].shape] for i in rows], dtype=np.float64)
        _, once = _predicted(device, name, dtype, dict(zip(names, sizes.T, strict=True)), libraries)
        found[rows] = once.seconds
    return np.asarray(found * np.array([k.count for k in kernels]), dtype=np.float64)


def _predicted(
    device: DeviceSpec, name: str, dtype: str, s: Mapping[str, ArrayLike], libraries: Libraries
) -> tuple[str, Prediction]:
    """The fitted table behind one launch, and what its model says of it; sizes are numbers or arrays of one shape."""
    if checkpoint.is_checkpoint(name):
        return "checkpoint", checkpoint.predict(device, name, s)
    if is_generation(name):
        return "serving", generation.predict(device, name, dtype, s)
    if name == "gemm" and "narrowed" in s:
        sizes = (s.get("batch", 1), s["m"], s["n"], s["k"])
        return "gemm", products.narrowed(device, dtype, *sizes, library=libraries.gemm)
    if name in CONVOLUTIONS:
        return "gemm", products.convolution(device, name, dtype, s)
    if name in LOGPROBS:
        return "gemm", products.logprob(device, name, dtype, s)
    if name == "released_cast":
        return "casts as released", casts.predict(dtype, s)
    if name == "launch":
        return "model_operators", operators.launch(device, s["thousandths"])
    if name == "gemm":
        return "gemm", gemm.predict(device, dtype, s.get("batch", 1), s["m"], s["n"], s["k"], library=libraries.gemm)
    if name in ("attention", "attention_backward"):
        backward = name == "attention_backward"
        b, q, kv, h, hk, d = (s[n] for n in ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim"))
        causal = np.asarray(s.get("causal", 0), dtype=np.bool_)
        return "attention", attention.predict(
            device, dtype, b, q, kv, h, hk, d, causal, library=libraries.attention, backward=backward
        )
    return "elementwise", streaming.predict(device, name, dtype, s)
