"""Gradients of a convolution of channels-last images as implicit matrix products in half precision."""

import torch
import triton
import triton.language as tl

from costmodels.errors import Problem
from real.kernels.checking import equal_problem, refuse
from real.kernels.convolution import check_half
from real.kernels.geometry import Geometry, Pair, channels_last, geometry_of
from real.kernels.half_gemm import rounded
from real.kernels.launching import Launch
from real.kernels.tiles import Tile, capability_of, multiplied_in, narrowed, place, splits, tile


@triton.jit
def _input_gradient(  # type: ignore[no-untyped-def]
    g_ptr, w_ptr, out_ptr,
    batch, height, width, channels, out_height, out_width, out_channels,
    g_n, g_h, g_w, w_o, w_h, w_w, out_n, out_h, out_w,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    pixels = batch * height * width
    reduction = TAPS_H * TAPS_W * out_channels
    at_m, at_n = place(tl.program_id(0), tl.cdiv(pixels, BLOCK_M), tl.cdiv(channels, BLOCK_N), GROUP_M)
    group = tl.program_id(1)
    rows = at_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = at_n * BLOCK_N + tl.arange(0, BLOCK_N)
    image = (rows // (height * width)).to(tl.int64)
    row, column = rows // width % height, rows % width
    g_at = g_ptr + image * g_n + group * out_channels
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, reduction, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        out_channel, tap = k % out_channels, k // out_channels
        tap_h, tap_w = tap // TAPS_W, tap % TAPS_W
        # this pixel meets the tap where the filter starts at `top`, `left`; only every STRIDE-th start was computed
        top = (row + PAD_H)[:, None] - (tap_h * DILATION_H)[None, :]
        left = (column + PAD_W)[:, None] - (tap_w * DILATION_W)[None, :]
        h, w = top // STRIDE_H, left // STRIDE_W
        met = (top >= 0) & (left >= 0) & (top % STRIDE_H == 0) & (left % STRIDE_W == 0)
        met &= (h < out_height) & (w < out_width) & (rows < pixels)[:, None] & (k < reduction)[None, :]
        g = tl.load(g_at[:, None] + (h * g_h + w * g_w + out_channel[None, :]), mask=met, other=0.0)
        w_at = w_ptr + (group * out_channels + out_channel).to(tl.int64) * w_o + tap_h * w_h + tap_w * w_w
        weight_mask = (k < reduction)[:, None] & (columns < channels)[None, :]
        weight = tl.load(w_at[:, None] + columns[None, :], mask=weight_mask, other=0.0)
        total = tl.dot(narrowed(g, DTYPE, WIDEN), narrowed(weight, DTYPE, WIDEN), total)
    out_at = (out_ptr + image * out_n + row * out_h + column * out_w)[:, None] + (group * channels + columns)[None, :]
    out_mask = (rows < pixels)[:, None] & (columns < channels)[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=out_mask)


@triton.jit
def _weight_gradient(  # type: ignore[no-untyped-def]
    g_ptr, x_ptr, out_ptr,
    batch, height, width, channels, out_height, out_width, out_channels, part,
    g_n, g_h, g_w, x_n, x_h, x_w, out_part, out_o,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    taps = TAPS_H * TAPS_W * channels
    pixels = batch * out_height * out_width
    at_m, at_n = place(tl.program_id(0), tl.cdiv(out_channels, BLOCK_M), tl.cdiv(taps, BLOCK_N), GROUP_M)
    group = tl.program_id(1)
    first = tl.program_id(2) * part
    rows = at_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = at_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel, tap = columns % channels, columns // channels
    down, right = tap // TAPS_W * DILATION_H - PAD_H, tap % TAPS_W * DILATION_W - PAD_W
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, tl.minimum(first + part, pixels), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        image = (k // (out_height * out_width)).to(tl.int64)
        row, column = k // out_width % out_height, k % out_width
        g_at = g_ptr + image * g_n + row * g_h + column * g_w + group * out_channels
        g_mask = (rows < out_channels)[:, None] & (k < pixels)[None, :]
        g = tl.load(g_at[None, :] + rows[:, None], mask=g_mask, other=0.0)
        h = (row * STRIDE_H)[:, None] + down[None, :]
        w = (column * STRIDE_W)[:, None] + right[None, :]
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
        inside &= (k < pixels)[:, None] & (columns < taps)[None, :]
        x_at = x_ptr + image * x_n + group * channels
        x = tl.load(x_at[:, None] + (h * x_h + w * x_w + channel[None, :]), mask=inside, other=0.0)
        total = tl.dot(narrowed(g, DTYPE, WIDEN), narrowed(x, DTYPE, WIDEN), total)
    out_at = (
        out_ptr + tl.program_id(2).to(tl.int64) * out_part + (group * out_channels + rows).to(tl.int64)[:, None] * out_o
    )
    out_mask = (rows < out_channels)[:, None] & (columns < taps)[None, :]
    tl.store(out_at + columns[None, :], total.to(out_ptr.dtype.element_ty), mask=out_mask)


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
    return Launch(
        kernel=_input_gradient,
        grid=(chosen.programs(geometry.pixels, geometry.group_channels), geometry.groups),
        arguments={
            "g_ptr": gradient,
            "w_ptr": w,
            "out_ptr": out,
            **geometry.sizes,
            **geometry.strides(g=gradient, w=w, out=out),
        },
        constants={**geometry.constants, **multiplied_in(dtype), **chosen.constants},
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
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
    part = -(-geometry.out_pixels // (len(out) * chosen.k)) * chosen.k
    programs = chosen.programs(geometry.group_out_channels, geometry.reduction)
    return Launch(
        kernel=_weight_gradient,
        grid=(programs, geometry.groups, len(out)),
        arguments={
            "g_ptr": gradient,
            "x_ptr": x,
            "out_ptr": out,
            **geometry.sizes,
            "part": part,
            **geometry.strides(g=gradient, x=x),
            "out_part": out.stride(0),
            "out_o": out.stride(1),
        },
        constants={**geometry.constants, **multiplied_in(dtype), **chosen.constants},
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
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
    check_half("half_conv2d_input_gradient", gradient, w, dtype, out_dtype)
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
    check_half("half_conv2d_weight_gradient", gradient, x, dtype, out_dtype)
    capability = capability_of(x.device)
    parts = weight_gradient_parts(geometry, max(gradient.element_size(), x.element_size()), capability)
    part_dtype = torch.float32 if parts > 1 else out_dtype
    out = torch.empty(parts, geometry.out_channels, geometry.reduction, dtype=part_dtype, device=x.device)
    weight_gradient_launch(channels_last(gradient), channels_last(x), out, geometry, dtype, capability).run()
    total = out[0] if parts == 1 else out.sum(0).to(out_dtype)
    shape = (geometry.out_channels, *geometry.taps, geometry.group_channels)
    return total.reshape(shape).permute(0, 3, 1, 2)


def _geometry(x_shape, w_shape, gradient, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    kernel = "the gradient of a convolution"
    geometry = geometry_of(kernel, x_shape, w_shape, stride, padding, dilation, groups)
    wrong: list[Problem | None] = [equal_problem("gradient", tuple(gradient.shape), geometry.out_shape)]
    refuse(kernel, wrong)
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
