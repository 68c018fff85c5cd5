"""Float to int8 and back: symmetric, with one scale for a tensor or one for each channel; rounded to nearest or
stochastically.

A number v = x / scale lies between two integers. Nearest takes the closer one (of two equally close the even one): the
error is at most half a step. Stochastic takes the upper one with probability v - floor(v): the error is less than a
step and its mean is zero, its variance over uniform v is scale^2 / 6.
"""

from math import ceil

import torch
import triton
import triton.language as tl

from real.kernels.amax import LARGEST
from real.kernels.checking import (
    FLOATS,
    dtype_problem,
    named_dtype_problem,
    refuse,
    scale_problem,
    size_problem,
)
from real.kernels.launching import Launch
from real.kernels.layout import channels_of, dense

BLOCK = 2048
"""assumption: elements of a program; 16 of each thread of 4 warps, whose int8 are one 16-byte store."""


@triton.jit(do_not_specialize=["seed"])
def _quantise(  # type: ignore[no-untyped-def]
    x_ptr, scale_ptr, out_ptr, n, n_channels, inner, seed,
    PER_CHANNEL: tl.constexpr, STOCHASTIC: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
    if PER_CHANNEL:
        scale = tl.load(scale_ptr + index // inner % n_channels, mask=mask, other=1.0)
    else:
        scale = tl.load(scale_ptr) + tl.zeros_like(x)
    steps = tl.div_rn(x, scale)  # correctly rounded: an approximate quotient would decide ties differently from torch
    number = steps == steps
    steps = tl.minimum(tl.maximum(steps, -LARGEST), LARGEST)
    if STOCHASTIC:
        below = tl.floor(steps)  # steps - below is exact, steps + u would not be
        steps = below + (tl.rand(seed, index) < steps - below).to(tl.float32)
    else:
        steps = (
            steps + 12582912.0
        ) - 12582912.0  # 1.5 * 2^23: float32 there has no fraction, so the sum rounds to nearest, ties to even
    tl.store(out_ptr + index, tl.where(number, steps, 0.0).to(tl.int8), mask=mask)


@triton.jit
def _dequantise(  # type: ignore[no-untyped-def]
    q_ptr, scale_ptr, out_ptr, n, n_channels, inner, PER_CHANNEL: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    q = tl.load(q_ptr + index, mask=mask, other=0).to(tl.float32)
    if PER_CHANNEL:  # noqa: SIM108 - decided while compiling
        scale = tl.load(scale_ptr + index // inner % n_channels, mask=mask, other=1.0)
    else:
        scale = tl.load(scale_ptr)
    tl.store(out_ptr + index, (q * scale).to(out_ptr.dtype.element_ty), mask=mask)


def quantise_launch(
    x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, *, axis: int | None, seed: int | None
) -> Launch:
    """`x` and `out` dense with the same strides."""
    return _elementwise(
        _quantise,
        {"x_ptr": x, "scale_ptr": scale, "out_ptr": out},
        axis,
        {"seed": seed or 0},
        {"STOCHASTIC": seed is not None, "LARGEST": float(LARGEST)},
    )


def dequantise_launch(q: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, *, axis: int | None) -> Launch:
    """`q` and `out` dense with the same strides."""
    return _elementwise(_dequantise, {"q_ptr": q, "scale_ptr": scale, "out_ptr": out}, axis, {}, {})


def _elementwise(
    kernel: object,
    tensors: dict[str, torch.Tensor],
    axis: int | None,
    more: dict[str, int],
    constants: dict[str, object],
) -> Launch:
    first = next(iter(tensors.values()))
    channels = channels_of(first, axis if tensors["scale_ptr"].numel() > 1 else None)
    return Launch(
        kernel=kernel,
        grid=(ceil(first.numel() / BLOCK),),
        arguments={**tensors, "n": first.numel(), "n_channels": channels.count, "inner": channels.inner, **more},
        constants={**constants, "PER_CHANNEL": channels.count > 1, "BLOCK": BLOCK},
    )


def quantise(x: torch.Tensor, scale: torch.Tensor, *, axis: int | None = None, seed: int | None = None) -> torch.Tensor:
    """int8 of x / scale in [-127, 127], in the shape and memory format of `x`.

    `x` is float32, float16 or bfloat16; `scale` float32, one number, or (x.shape[axis],) for one of each channel.
    Without `seed` rounds to nearest, ties to even; with it stochastically, where the same seed rounds the same tensor
    the same way (Philox 4x32-10, the counter is an element's place in memory). Beyond the range it takes the end
    (infinities too); NaN becomes 0, and so does everything under a scale that is NaN: its NaN is in the scale. Raises
    InputError on other dtypes or shapes.
    """
    _check("quantise", x, scale, axis, FLOATS)
    x = dense(x)
    out = torch.empty_like(x, dtype=torch.int8)
    if x.numel():
        quantise_launch(x, scale.contiguous(), out, axis=axis, seed=seed).run()
    return out


def dequantise(
    q: torch.Tensor, scale: torch.Tensor, *, axis: int | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """q * scale, computed in float32 and rounded to `dtype` (float32, float16, bfloat16), in the shape and memory
    format of `q` (int8)."""
    _check("dequantise", q, scale, axis, (torch.int8,), named_dtype_problem("dtype", dtype, FLOATS))
    q = dense(q)
    out = torch.empty_like(q, dtype=dtype)
    if q.numel():
        dequantise_launch(q, scale.contiguous(), out, axis=axis).run()
    return out


def _check(kernel, x, scale, axis, dtypes, *more):  # type: ignore[no-untyped-def]
    channels = 1 if axis is None else x.shape[axis]
    refuse(kernel, (dtype_problem("x", x, dtypes), scale_problem("scale", scale, channels), size_problem(x), *more))


def reference_quantise(
    x: torch.Tensor, scale: torch.Tensor, *, axis: int | None = None, seed: int | None = None
) -> torch.Tensor:
    """The same in torch; stochastic rounding draws from torch's own generator, so from other random numbers."""
    steps = (x.float() / along(scale, x, axis)).clamp(-LARGEST, LARGEST)
    if seed is None:
        rounded = steps.round()
    else:
        generator = torch.Generator(x.device).manual_seed(seed)
        below = steps.floor()
        u = torch.rand(x.shape, generator=generator, device=x.device)
        rounded = below + (u < steps - below)
    return rounded.nan_to_num(nan=0.0).to(torch.int8)


def reference_dequantise(
    q: torch.Tensor, scale: torch.Tensor, *, axis: int | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The same in torch."""
    return (q.float() * along(scale, q, axis)).to(dtype)


def along(scale: torch.Tensor, x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """`scale` in a shape that multiplies `x` channel by channel along `axis`."""
    if axis is None or scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
