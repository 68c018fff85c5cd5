"""Gradients of a convolution of channels-last images as implicit matrix products in half precision."""

import torch
import triton
import triton.language as tl

from real.kernels.blocks import both, multiplied, tile_of, write
from real.kernels.checking import equal_problem, half_problems, refuse
from real.kernels.geometry import Geometry, Pair, channels_last, geometry_of
from real.kernels.half_gemm import rounded
from real.kernels.images import pixel, tap, window
from real.kernels.launching import Launch
from real.kernels.tiles import Tile, capability_of, part_length, splits, tile, tiled_launch, together


@triton.jit
def _input_gradient(  # type: ignore[no-untyped-def]
    g_ptr, w_ptr, out_ptr,
    batch, height, width, channels, out_height, out_width, out_channels,
    g_n, g_h, g_w, w_o, w_h, w_w, out_n, out_h, out_w,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr, TOTAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    pixels = batch * height * width
    reduction = TAPS_H * TAPS_W * out_channels
    rows, columns = tile_of(pixels, channels, BLOCK_M, BLOCK_N, GROUP_M)
    group = tl.program_id(1)
    image, row, column = pixel(rows, height, width)
    g_at = g_ptr + image * g_n + group * out_channels
    total = tl.zeros((BLOCK_M, BLOCK_N), TOTAL)
    for start in range(0, reduction, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        out_channel, tap_h, tap_w = tap(k, out_channels, TAPS_W)
        # this pixel meets the tap where the filter starts at `top`, `left`; only every STRIDE-th start was computed
        top = (row + PAD_H)[:, None] - (tap_h * DILATION_H)[None, :]
        left = (column + PAD_W)[:, None] - (tap_w * DILATION_W)[None, :]
        met = both(rows < pixels, k < reduction) & (top % STRIDE_H == 0) & (left % STRIDE_W == 0)
        h, w = top // STRIDE_H, left // STRIDE_W
        g = window(g_at[:, None], h, w, out_channel[None, :], g_h, g_w, out_height, out_width, met)
        w_at = w_ptr + (group * out_channels + out_channel).to(tl.int64) * w_o + tap_h * w_h + tap_w * w_w
        weight = tl.load(w_at[:, None] + columns[None, :], mask=both(k < reduction, columns < channels), other=0.0)
        total = multiplied(g, weight, total, DTYPE, WIDEN, TOTAL)
    out_at = (out_ptr + image * out_n + row * out_h + column * out_w)[:, None] + (group * channels + columns)[None, :]
    write(out_at, total, both(rows < pixels, columns < channels))


@triton.jit
def _weight_gradient(  # type: ignore[no-untyped-def]
    g_ptr, x_ptr, out_ptr,
    batch, height, width, channels, out_height, out_width, out_channels, part,
    g_n, g_h, g_w, x_n, x_h, x_w, out_part, out_o,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr, TOTAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    taps = TAPS_H * TAPS_W * channels
    pixels = batch * out_height * out_width
    rows, columns = tile_of(out_channels, taps, BLOCK_M, BLOCK_N, GROUP_M)
    group = tl.program_id(1)
    first = tl.program_id(2) * part
    channel, tap_h, tap_w = tap(columns, channels, TAPS_W)
    down, right = tap_h * DILATION_H - PAD_H, tap_w * DILATION_W - PAD_W
    total = tl.zeros((BLOCK_M, BLOCK_N), TOTAL)
    for start in range(first, tl.minimum(first + part, pixels), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        image, row, column = pixel(k, out_height, out_width)
        g_at = g_ptr + image * g_n + row * g_h + column * g_w + group * out_channels
        g = tl.load(g_at[None, :] + rows[:, None], mask=both(rows < out_channels, k < pixels), other=0.0)
        h = (row * STRIDE_H)[:, None] + down[None, :]
        w = (column * STRIDE_W)[:, None] + right[None, :]
        x_at = (x_ptr + image * x_n + group * channels)[:, None]
        x = window(x_at, h, w, channel[None, :], x_h, x_w, height, width, both(k < pixels, columns < taps))
        total = multiplied(g, x, total, DTYPE, WIDEN, TOTAL)
    out_at = out_ptr + tl.program_id(2).to(tl.int64) * out_part
    out_at += (group * out_channels + rows).to(tl.int64)[:, None] * out_o + columns[None, :]
    write(out_at, total, both(rows < out_channels, columns < taps))


def input_gradient_launch(
    gradient: torch.Tensor,
    w: torch.Tensor,
    out: torch.Tensor,
    geometry: Geometry,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> Launch:
    """All of them channels-last."""
    widest_B = max(gradient.element_size(), w.element_size())
    chosen = tile(
        geometry.pixels,
        geometry.group_channels,
        widest_B,
        capability,
        batch=geometry.groups,
        wide_loads=geometry.wide_loads,
    )
    return tiled_launch(
        _input_gradient,
        chosen,
        size=(geometry.pixels, geometry.group_channels),
        batch=geometry.groups,
        arguments={
            "g_ptr": gradient,
            "w_ptr": w,
            "out_ptr": out,
            **geometry.sizes,
            **geometry.strides(g=gradient, w=w, out=out),
        },
        constants=geometry.constants,
        dtype=dtype,
        flops=geometry.flops,
    )


def weight_gradient_launch(
    gradient: torch.Tensor,
    x: torch.Tensor,
    out: torch.Tensor,
    geometry: Geometry,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> Launch:
    """`gradient` and `x` channels-last, `out` a contiguous (parts, out_channels, reduction)."""
    widest_B = max(gradient.element_size(), x.element_size())
    chosen = _weight_tile(geometry, widest_B, capability)
    return tiled_launch(
        _weight_gradient,
        chosen,
        size=(geometry.group_out_channels, geometry.reduction),
        batch=geometry.groups,
        parts=len(out),
        arguments={
            "g_ptr": gradient,
            "x_ptr": x,
            "out_ptr": out,
            **geometry.sizes,
            "part": part_length(geometry.out_pixels, len(out), chosen.k),
            **geometry.strides(g=gradient, x=x),
            "out_part": out.stride(0),
            "out_o": out.stride(1),
        },
        constants=geometry.constants,
        dtype=dtype,
        flops=geometry.flops,
    )


def _weight_tile(geometry: Geometry, widest_B: int, capability: tuple[int, int]) -> Tile:
    rows, columns = geometry.group_out_channels, geometry.reduction
    return tile(rows, columns, widest_B, capability, batch=geometry.groups, wide_loads=geometry.wide_loads)


def weight_gradient_parts(geometry: Geometry, widest_B: int, capability: tuple[int, int]) -> int:
    """Into how many parts the sum over the output's pixels is split."""
    chosen = _weight_tile(geometry, widest_B, capability)
    programs = geometry.groups * chosen.programs(geometry.group_out_channels, geometry.reduction)
    return splits(programs, geometry.out_pixels, chosen.k)


def half_conv2d_input_gradient(
    gradient: torch.Tensor,
    w: torch.Tensor,
    x_shape: tuple[int, ...],
    *,
    dtype: torch.dtype,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Gradient of the convolution's x, of shape `x_shape` and channels-last, from that of its output and `w`; as
    torch.nn.grad.conv2d_input.

    Operands and result as in `half_conv2d`. With a stride, taps that no output used are multiplied as zeros: the
    arithmetic is that of stride 1, stride_h * stride_w times what is needed.
    """
    out_dtype = out_dtype or dtype
    geometry = _geometry(x_shape, w.shape, gradient, stride, padding, dilation, groups)
    refuse("half_conv2d_input_gradient", half_problems({"gradient": gradient, "w": w}, dtype, out_dtype))
    out = torch.empty(tuple(x_shape), dtype=out_dtype, device=w.device, memory_format=torch.channels_last)
    capability = capability_of(w.device)
    input_gradient_launch(channels_last(gradient), channels_last(w), out, geometry, dtype, capability).run()
    return out


def half_conv2d_weight_gradient(
    gradient: torch.Tensor,
    x: torch.Tensor,
    w_shape: tuple[int, ...],
    *,
    dtype: torch.dtype,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Gradient of the convolution's w, of shape `w_shape` and channels-last, from that of its output and `x`; as
    torch.nn.grad.conv2d_weight.

    Operands and result as in `half_conv2d`. The sum over pixels is long and the result small: parts of it are summed in
    float32 in a fixed order.
    """
    out_dtype = out_dtype or dtype
    geometry = _geometry(x.shape, w_shape, gradient, stride, padding, dilation, groups)
    refuse("half_conv2d_weight_gradient", half_problems({"gradient": gradient, "x": x}, dtype, out_dtype))
    capability = capability_of(x.device)
    parts = weight_gradient_parts(geometry, max(gradient.element_size(), x.element_size()), capability)
    part_dtype = torch.float32 if parts > 1 else out_dtype
    out = torch.empty(parts, geometry.out_channels, geometry.reduction, dtype=part_dtype, device=x.device)
    weight_gradient_launch(channels_last(gradient), channels_last(x), out, geometry, dtype, capability).run()
    total = out[0] if parts == 1 else together(out, None, out_dtype)
    shape = (geometry.out_channels, *geometry.taps, geometry.group_channels)
    return total.reshape(shape).permute(0, 3, 1, 2)


def _geometry(x_shape, w_shape, gradient, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    kernel = "the gradient of a convolution"
    geometry = geometry_of(kernel, x_shape, w_shape, stride, padding, dilation, groups)
    refuse(kernel, [equal_problem("gradient", tuple(gradient.shape), geometry.out_shape)])
    return geometry


def reference_half_conv2d_input_gradient(
    gradient: torch.Tensor,
    w: torch.Tensor,
    x_shape: tuple[int, ...],
    *,
    dtype: torch.dtype,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The same in torch."""
    _geometry(x_shape, w.shape, gradient, stride, padding, dilation, groups)
    return torch.nn.grad.conv2d_input(
        x_shape, rounded(w, dtype), rounded(gradient, dtype), stride, padding, dilation, groups
    ).to(out_dtype or dtype)


def reference_half_conv2d_weight_gradient(
    gradient: torch.Tensor,
    x: torch.Tensor,
    w_shape: tuple[int, ...],
    *,
    dtype: torch.dtype,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The same in torch."""
    _geometry(x.shape, w_shape, gradient, stride, padding, dilation, groups)
    return torch.nn.grad.conv2d_weight(
        rounded(x, dtype), w_shape, rounded(gradient, dtype), stride, padding, dilation, groups
    ).to(out_dtype or dtype)
