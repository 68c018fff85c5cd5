"""Which kernels a device runs: Triton's, or torch's own where Triton has none.

Triton's matrix products need the tensor cores of sm_80 and later; for sm_70 (V100) and sm_75 (T4) it does not compile
them. Those and the CPU run the functions that stand beside the Triton kernels as their references, with the same
signatures: `torch._int_mm` and torch's half products and convolutions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Path = Literal["triton", "torch"]
FIRST_FOR_TRITON = (8, 0)

Run = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The kernels of one path. Signatures, shapes and rounding are those of the functions of these names in
    `real.kernels`."""

    path: Path
    amax: Run
    quantise: Run
    dequantise: Run
    int8_gemm: Run
    half_gemm: Run
    linear_input_gradient: Run
    linear_weight_gradient: Run
    int8_conv2d: Run
    half_conv2d: Run
    half_conv2d_input_gradient: Run
    half_conv2d_weight_gradient: Run


def path_of(device: torch.device) -> Path:
    """By the device's compute capability; "torch" on whatever is no NVIDIA GPU, also where TRITON_INTERPRET is set."""
    if device.type != "cuda" or torch.version.hip:
        return "torch"
    return path_of_capability(torch.cuda.get_device_capability(device))


def path_of_capability(capability: tuple[int, int]) -> Path:
    """(8, 0) and later: "triton"; (7, 0) and (7, 5): "torch"."""
    return "triton" if capability >= FIRST_FOR_TRITON else "torch"


def kernels_of(path: Path) -> Kernels:
    """The kernels of a path; needs triton installed, for either."""
    from real.kernels import amax, convolution, convolution_gradients, half_gemm, int8_gemm, quantise

    prefix = "" if path == "triton" else "reference_"
    homes = {
        amax: ("amax",),
        quantise: ("quantise", "dequantise"),
        int8_gemm: ("int8_gemm",),
        half_gemm: ("half_gemm", "linear_input_gradient", "linear_weight_gradient"),
        convolution: ("int8_conv2d", "half_conv2d"),
        convolution_gradients: ("half_conv2d_input_gradient", "half_conv2d_weight_gradient"),
    }
    return Kernels(path=path, **{name: getattr(home, prefix + name) for home, names in homes.items() for name in names})
