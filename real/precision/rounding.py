"""Rounding tensors to the numbers of a precision: to the nearest, or stochastically so that the mean stays where it was.

Integers of 8 bits are symmetric (zero is 0, -127 to 127) with a scale for the whole tensor or for each channel of one dimension;
8-bit floating point is e4m3 with such a scale. Everything random is drawn from a generator that the caller gives, one of the CPU
on every device: for another device it draws a seed.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from costmodels.precision_error import LEVELS, MANTISSA

Rounding = Literal["nearest", "stochastic"]
Scaling = Literal["tensor", "channel"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic")
SCALINGS: tuple[Scaling, ...] = ("tensor", "channel")

STORED = {
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
}
"""How torch stores a precision; tf32 is float32 whose last 13 bits are 0."""

LARGEST = {"int8": float(LEVELS), "fp8": 448.0}
"""What the largest magnitude of a scaled tensor becomes."""

EXPONENT = {"fp8": -6, "float16": -14}
"""Of the smallest normal number; below it numbers are equally far apart. The others have float32's."""

BITS_OF_FLOAT32 = 23


@dataclass(frozen=True, slots=True)
class Scaled:
    """`values` times `scale`: (…) of int8 or float8_e4m3fn, and float32 of one element or one for each channel."""

    values: Tensor
    scale: Tensor

    def widened(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers themselves, rounded to the nearest of `dtype`."""
        return (self.values.to(torch.float32) * self.scale).to(dtype)


def scaled(
    x: Tensor, precision: str, rounding: Rounding, generator: torch.Generator | None, channel: int | None = None
) -> Scaled:
    """`x` (any float type) in int8 or fp8, with one scale for each place along dimension `channel`, or one in all.

    A value is at most scale/2 off to the nearest in int8, and less than one scale off stochastically. Off the CPU, int8 is
    rounded by the kernels of `real.kernels`, which read `x` as it is.
    """
    if precision == "int8" and x.device.type != "cpu":
        return by_kernels(x, rounding, generator, channel)
    wide = x.detach().to(torch.float32)
    scale = _scale(wide, LARGEST[precision], channel)
    shrunk = wide / scale
    if precision == "int8":
        whole = shrunk.round_() if rounding == "nearest" else shrunk.add_(_uniform(wide, generator)).floor_()
        return Scaled(whole.clamp_(-LEVELS, LEVELS).to(torch.int8), scale)
    bound = LARGEST[precision]
    return Scaled(rounded(shrunk.clamp_(-bound, bound), precision, rounding, generator), scale)


def by_kernels(x: Tensor, rounding: Rounding, generator: torch.Generator | None, channel: int | None = None) -> Scaled:
    """`scaled` in int8 by the kernels of the device's path, Triton's or torch's."""
    from real.kernels import paths
    from real.kernels.amax import scale_of
    from real.kernels.quantise import along

    kernels = paths.kernels_of(paths.path_of(x.device))
    x = x.detach()
    scale = scale_of(kernels.amax(x, axis=channel))
    values = kernels.quantise(x, scale, axis=channel, seed=None if rounding == "nearest" else _seed(generator))
    return Scaled(values, along(scale, x, channel))


def rounded(x: Tensor, precision: str, rounding: Rounding, generator: torch.Generator | None) -> Tensor:
    """`x` in a floating-point precision, stored as `STORED` says. What is too large becomes infinite (fp8: NaN), as in torch.

    Stochastic: random bits are added below the mantissa, and what is below it then is cut off; a value between two neighbours
    becomes either with the probability that keeps its mean.
    """
    stored = STORED[precision]
    if precision == "float32" or x.dtype == stored != torch.float32:
        return x.to(stored)
    wide = x.to(torch.float32)
    if rounding == "nearest" and precision != "tf32":
        return wide.to(stored)
    dropped = BITS_OF_FLOAT32 - MANTISSA[precision]
    if rounding == "nearest":
        return _cut(wide, _half_to_even(wide, dropped), dropped)
    generator = _on(generator, wide.device)
    bits = torch.randint(0, 1 << dropped, wide.shape, dtype=torch.int32, device=wide.device, generator=generator)
    found = _cut(wide, bits, dropped)
    if precision in EXPONENT:
        step = 2.0 ** (EXPONENT[precision] - MANTISSA[precision])
        small = (wide / step + _uniform(wide, generator)).floor_() * step
        found = torch.where(wide.abs() < 2.0 ** EXPONENT[precision], small, found)
    return found.to(stored)


def _scale(wide: Tensor, largest: float, channel: int | None) -> Tensor:
    """1 where all is zero."""
    if channel is None:
        amax = torch.maximum(wide.amax(), -wide.amin()) if wide.numel() else wide.new_zeros(())
    else:
        amax = wide.abs().amax([d for d in range(wide.ndim) if d != channel % wide.ndim], keepdim=True)
    return torch.where(amax == 0, 1.0, amax / largest)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=_on(generator, like.device))


def _on(generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """A generator of `device`; elsewhere than on the CPU a new one, whose seed is drawn."""
    if generator is None or generator.device.type == device.type:
        return generator
    return torch.Generator(device).manual_seed(_seed(generator))


def _seed(generator: torch.Generator | None) -> int:
    """Drawn on the host, so that a device does not wait."""
    return int(torch.randint(2**31 - 1, (), generator=generator))


def _half_to_even(wide: Tensor, dropped: int) -> Tensor:
    """What rounds to the nearest when added below the mantissa: half a step, less one bit where the last kept bit is 0."""
    return (wide.view(torch.int32) >> dropped & 1) + ((1 << dropped - 1) - 1)


def _cut(wide: Tensor, added: Tensor, dropped: int) -> Tensor:
    """float32 with `added` to its bits, without the last `dropped`; infinite and NaN stay."""
    bits = wide.contiguous().view(torch.int32)
    cut = (bits + added) & -(1 << dropped)
    return torch.where(wide.isfinite(), cut.view(torch.float32), wide)
