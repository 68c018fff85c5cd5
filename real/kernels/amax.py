"""Largest magnitude of a tensor or of each of its channels, and the scale of int8 that follows from it.

Magnitudes are compared as integers: without the sign bit, the bits of a float32 grow with its value, infinity is above
every number and NaN above infinity. So NaN and infinity reach the result, and atomic maxima give it in any order of
programs.
"""

from math import ceil

import torch
import triton
import triton.language as tl

from real.kernels.checking import FLOATS, dtype_problem, refuse, size_problem
from real.kernels.launching import Launch
from real.kernels.layout import Channels, channels_of, dense

LARGEST = 127
"""Integers reach from -127 to 127: symmetric, so that a product's sign needs no correction."""

ELEMENTS = 4096
"""assumption: elements of a program; 32 of each thread of 4 warps, enough loads under way to fill memory."""


@triton.jit
def _amax(  # type: ignore[no-untyped-def]
    x_ptr, out_ptr, n_members, n_channels, inner,
    PER_CHANNEL: tl.constexpr, CHANNELS: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    member = tl.program_id(0) * MEMBERS + tl.arange(0, MEMBERS)
    start = member // inner * (inner * n_channels) + member % inner if PER_CHANNEL else member
    mask = (channel < n_channels)[:, None] & (member < n_members)[None, :]
    x = tl.load(x_ptr + channel[:, None] * inner + start[None, :], mask=mask, other=0.0).to(tl.float32)
    magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.atomic_max(out_ptr + channel, tl.max(magnitude, axis=1), mask=channel < n_channels)


def amax_launch(x: torch.Tensor, out: torch.Tensor, channels: Channels) -> Launch:
    """`x` dense; `out` int32 zeros, one for each channel."""
    per_channel = channels.count > 1
    if not per_channel:
        block = (1, ELEMENTS)
    elif channels.inner == 1:  # channels last: neighbours in memory are different channels
        block = (64, ELEMENTS // 64)
    else:
        block = (4, ELEMENTS // 4)
    members = x.numel() // max(channels.count, 1)
    return Launch(
        kernel=_amax,
        grid=(ceil(members / block[1]), ceil(channels.count / block[0])),
        arguments={
            "x_ptr": x,
            "out_ptr": out,
            "n_members": members,
            "n_channels": channels.count,
            "inner": channels.inner,
        },
        constants={"PER_CHANNEL": per_channel, "CHANNELS": block[0], "MEMBERS": block[1]},
    )


def amax(x: torch.Tensor, *, axis: int | None = None) -> torch.Tensor:
    """max |x| in float32: shape () over all of `x`, or (x.shape[axis],) over all other axes.

    `x` is float32, float16 or bfloat16 of any shape and any strides (one that leaves gaps in memory is copied first). 0
    where there are no elements, infinity if one is infinite, NaN if one is NaN. Raises InputError on another dtype or
    2^31 elements or more.
    """
    refuse("amax", (dtype_problem("x", x, FLOATS), size_problem(x)))
    x = dense(x)
    channels = channels_of(x, axis)
    bits = torch.zeros(channels.count, dtype=torch.int32, device=x.device)
    if x.numel():
        amax_launch(x, bits, channels).run()
    found = bits.view(torch.float32)
    return found if axis is not None else found.reshape(())


def reference_amax(x: torch.Tensor, *, axis: int | None = None) -> torch.Tensor:
    """The same in torch."""
    magnitude = x.float().abs()
    if axis is None:
        return magnitude.max() if x.numel() else x.new_zeros((), dtype=torch.float32)
    by_channel = magnitude.movedim(axis, 0).flatten(1) if x.dim() > 1 else magnitude[:, None]
    return by_channel.amax(1) if by_channel.shape[1] else by_channel.new_zeros(len(by_channel))


def scale_of(largest: torch.Tensor) -> torch.Tensor:
    """What one step of int8 is worth if `largest` becomes 127: `largest` / 127, at least the smallest normal float32.

    The least keeps zeros (and numbers too small for float32's full precision) from being divided by zero. NaN and
    infinity stay: a product with such a scale is NaN, which a loss scaler sees.
    """
    return (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
