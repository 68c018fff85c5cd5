"""How long a kernel takes on a device: measured if the device was calibrated, otherwise a roofline with tiles and waves."""

from collections.abc import Iterable
from functools import lru_cache

from costmodels import gemm, measured
from costmodels.arithmetic import native_dtype
from costmodels.attention import attention_seconds
from costmodels.efficiency import Efficiency, efficiency
from costmodels.kernels import Kernel, nbytes
from costmodels.specs import DeviceSpec, Estimate
from costmodels.streaming import memory_seconds


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
        return float(gemm.predict(device, kernel.dtype, s.get("batch", 1), s["m"], s["n"], s["k"]).seconds)
    if kernel.name in ("attention", "attention_backward"):
        return attention_seconds(kernel, native, device, e)
    return device.launch_s + memory_seconds(nbytes(kernel) / kernel.count, device, e)
