"""Two-dimensional convolution of channels-last images as an implicit matrix product, in int8 or half precision.

Rows are the output's pixels, columns its channels, and the reduction runs over the taps of the filter and the input's
channels; the matrix of patches is never written, its elements are loaded from where they are in the image. Neighbours
in the reduction are neighbouring channels, hence channels-last: they are one wide load where their number is a multiple
of 16.
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional

from real.kernels.blocks import both, finished, multiplied, tile_of, write
from real.kernels.checking import (
    dtype_problem,
    half_problems,
    reduction_problem,
    refuse,
    scale_problem,
    scaling_problems,
)
from real.kernels.geometry import Geometry, Pair, channels_last, geometry_of
from real.kernels.half_gemm import rounded
from real.kernels.images import pixel, tap, window
from real.kernels.int8_gemm import reference_int8_gemm, scaled
from real.kernels.launching import Launch
from real.kernels.tiles import capability_of, tile, tiled_launch


@triton.jit
def _convolve(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr,
    batch, height, width, channels, out_height, out_width, out_channels,
    x_n, x_h, x_w, w_o, w_h, w_w, out_n, out_h, out_w,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    W_PER_COLUMN: tl.constexpr, DTYPE: tl.constexpr, WIDEN: tl.constexpr, TOTAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    pixels = batch * out_height * out_width
    reduction = TAPS_H * TAPS_W * channels
    rows, columns = tile_of(pixels, out_channels, BLOCK_M, BLOCK_N, GROUP_M)
    group = tl.program_id(1)
    out_channel = group * out_channels + columns
    image, row, column = pixel(rows, out_height, out_width)
    top, left = row * STRIDE_H - PAD_H, column * STRIDE_W - PAD_W
    x_at = x_ptr + image * x_n + group * channels
    w_at = w_ptr + out_channel.to(tl.int64) * w_o
    total = tl.zeros((BLOCK_M, BLOCK_N), TOTAL)
    for start in range(0, reduction, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        channel, tap_h, tap_w = tap(k, channels, TAPS_W)
        h = top[:, None] + (tap_h * DILATION_H)[None, :]
        w = left[:, None] + (tap_w * DILATION_W)[None, :]
        there = both(rows < pixels, k < reduction)
        x = window(x_at[:, None], h, w, channel[None, :], x_h, x_w, height, width, there)
        weight_at = w_at[None, :] + (tap_h * w_h + tap_w * w_w + channel)[:, None]
        weight = tl.load(weight_at, mask=both(k < reduction, columns < out_channels), other=0.0)
        total = multiplied(x, weight, total, DTYPE, WIDEN, TOTAL)
    result = finished(
        total, x_scale_ptr, w_scale_ptr, bias_ptr,
        rows, out_channel, rows < pixels, columns < out_channels, False, W_PER_COLUMN,
    )  # fmt: skip
    out_at = (out_ptr + image * out_n + row * out_h + column * out_w)[:, None] + out_channel[None, :]
    write(out_at, result, both(rows < pixels, columns < out_channels))


def convolution_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    geometry: Geometry,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> Launch:
    """`x`, `w` and `out` channels-last."""
    chosen = tile(
        geometry.out_pixels,
        geometry.group_out_channels,
        max(x.element_size(), w.element_size()),
        capability,
        batch=geometry.groups,
        wide_loads=geometry.group_channels % 16 == 0,
    )
    return tiled_launch(
        _convolve,
        chosen,
        size=(geometry.out_pixels, geometry.group_out_channels),
        batch=geometry.groups,
        arguments={
            "x_ptr": x,
            "w_ptr": w,
            "x_scale_ptr": x_scale,
            "w_scale_ptr": w_scale,
            "bias_ptr": bias,
            "out_ptr": out,
            **geometry.sizes,
            **geometry.strides(x=x, w=w, out=out),
        },
        constants={**geometry.constants, "W_PER_COLUMN": w_scale is not None and w_scale.numel() > 1},
        dtype=dtype,
        flops=geometry.flops,
    )


def int8_conv2d(
    x: torch.Tensor,
    w: torch.Tensor,
    x_scale: torch.Tensor | None = None,
    w_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Convolution of `x` (n, c, h, w) with `w` (o, c / groups, kh, kw), both int8, as torch.nn.functional.conv2d; the
    result is channels-last.

    Operands that are not channels-last are copied. `x_scale` is one float32, `w_scale` one or (o,), `bias` (o,). Sums
    are int32; the result is (sum * x_scale) * w_scale + bias in float32, rounded to `out_dtype`; without scales
    `out_dtype` is int32 and the sums come out. Raises InputError where shapes or dtypes do not fit or the reduction c /
    groups * kh * kw is longer than int32 holds.
    """
    geometry = geometry_of("int8_conv2d", x.shape, w.shape, stride, padding, dilation, groups)
    _check_int8(x, w, x_scale, w_scale, bias, out_dtype, geometry)
    return _convolved(x, w, x_scale, w_scale, bias, geometry, torch.int8, out_dtype)


def half_conv2d(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Convolution of `x` (n, c, h, w) with `w` (o, c / groups, kh, kw) as torch.nn.functional.conv2d; the result is
    channels-last.

    Operands are float32, float16 or bfloat16 (copied where they are not channels-last) and rounded to `dtype` (float16
    or bfloat16) as they are loaded. Sums and bias are float32, the result is rounded once, to `out_dtype` (`dtype` if
    None).
    """
    geometry = geometry_of("half_conv2d", x.shape, w.shape, stride, padding, dilation, groups)
    out_dtype = out_dtype or dtype
    refuse("half_conv2d", half_problems({"x": x, "w": w}, dtype, out_dtype, bias, geometry.out_channels))
    return _convolved(x, w, None, None, bias, geometry, dtype, out_dtype)


def _convolved(
    x: torch.Tensor,
    w: torch.Tensor,
    x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    geometry: Geometry,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    x, w = channels_last(x), channels_last(w)
    out = torch.empty(geometry.out_shape, dtype=out_dtype, device=x.device, memory_format=torch.channels_last)
    capability = capability_of(x.device)
    convolution_launch(x, w, x_scale, w_scale, bias, out, geometry, dtype, capability).run()
    return out


def _check_int8(
    x: torch.Tensor,
    w: torch.Tensor,
    x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    geometry: Geometry,
) -> None:
    refuse(
        "int8_conv2d",
        (
            dtype_problem("x", x, (torch.int8,)),
            dtype_problem("w", w, (torch.int8,)),
            scale_problem("x_scale", x_scale, 1),
            scale_problem("w_scale", w_scale, geometry.out_channels),
            *scaling_problems(x_scale, w_scale, bias, geometry.out_channels, out_dtype),
            reduction_problem(geometry.reduction),
        ),
    )


def reference_int8_conv2d(
    x: torch.Tensor,
    w: torch.Tensor,
    x_scale: torch.Tensor | None = None,
    w_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The same in torch: patches are written out as a matrix for torch's own int8 product, group by group."""
    geometry = geometry_of("int8_conv2d", x.shape, w.shape, stride, padding, dilation, groups)
    _check_int8(x, w, x_scale, w_scale, bias, out_dtype, geometry)
    patches = _patches(channels_last(x), geometry)
    kernels = w.permute(0, 2, 3, 1).reshape(groups, geometry.group_out_channels, geometry.reduction)
    total = torch.cat(
        [reference_int8_gemm(a, b, out_dtype=torch.int32) for a, b in zip(patches, kernels, strict=True)], dim=1
    )
    n, o, h, w_ = geometry.out_shape
    return scaled(total, x_scale, w_scale, bias, out_dtype).reshape(n, h, w_, o).permute(0, 3, 1, 2)


def _patches(x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """(groups, pixels of the output, reduction), the reduction in the order of taps, then channels."""
    (pad_h, pad_w), (stride_h, stride_w), (dil_h, dil_w) = geometry.padding, geometry.stride, geometry.dilation
    images = functional.pad(x.permute(0, 2, 3, 1), (0, 0, pad_w, pad_w, pad_h, pad_h)).contiguous()
    n, _, out_h, out_w = geometry.out_shape
    step_n, step_h, step_w, _ = images.stride()
    view = images.as_strided(
        (geometry.groups, n, out_h, out_w, *geometry.taps, geometry.group_channels),
        (
            geometry.group_channels,
            step_n,
            stride_h * step_h,
            stride_w * step_w,
            dil_h * step_h,
            dil_w * step_w,
            1,
        ),
    )
    return view.reshape(geometry.groups, geometry.out_pixels, geometry.reduction)


def reference_half_conv2d(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The same in torch. On CUDA torch's convolution is in `dtype`, so a wider `out_dtype` (and the bias) come after
    its rounding."""
    geometry = geometry_of("half_conv2d", x.shape, w.shape, stride, padding, dilation, groups)
    out_dtype = out_dtype or dtype
    refuse("half_conv2d", half_problems({"x": x, "w": w}, dtype, out_dtype, bias, geometry.out_channels))
    total = functional.conv2d(rounded(x, dtype), rounded(w, dtype), None, stride, padding, dilation, groups)
    return (total if bias is None else total.float() + bias.float()[:, None, None]).to(out_dtype)
