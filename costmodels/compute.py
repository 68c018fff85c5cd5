"""How long a kernel takes on a device: measured if the device was calibrated, otherwise what a fitted model says."""

from collections.abc import Iterable
from functools import lru_cache

from costmodels import attention, gemm, measured, streaming
from costmodels.arithmetic import native_dtype
from costmodels.kernels import Kernel
from costmodels.prediction import Prediction
from costmodels.specs import DeviceSpec, Estimate


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
    table, once = _predicted(kernel, device)
    return Estimate(
        seconds=kernel.count * float(once.seconds),
        method="fitted",
        source=f"fitted {table}; {source}",
        error=float(once.error),
        extrapolated=bool(once.extrapolated),
    )


def seconds(kernels: Iterable[Kernel], device: DeviceSpec) -> float:
    """Kernels one after the other."""
    return sum(estimate(k, device).seconds for k in kernels)


def _predicted(kernel: Kernel, device: DeviceSpec) -> tuple[str, Prediction]:
    """The fitted table behind one launch, and what its model says of it."""
    s = dict(kernel.shape)
    if kernel.name == "gemm":
        return "gemm", gemm.predict(device, kernel.dtype, s.get("batch", 1), s["m"], s["n"], s["k"])
    if kernel.name in ("attention", "attention_backward"):
        backward = kernel.name == "attention_backward"
        b, q, kv, h, hk, d = (s[n] for n in ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim"))
        causal = bool(s.get("causal", 0))
        return "attention", attention.predict(device, kernel.dtype, b, q, kv, h, hk, d, causal, backward=backward)
    return "elementwise", streaming.predict(device, kernel.name, kernel.dtype, s)
