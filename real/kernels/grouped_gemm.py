"""Products of all experts in one launch: rows sorted by expert, each times its expert's weight, forward and backward.

How many rows an expert has is known on the device only. The grid has as many tiles as there could be, one for each expert more than
rows fill; a program counts tiles through the experts until it finds its own.
"""

from itertools import pairwise
from math import ceil
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

from costmodels.errors import Problem
from real.kernels.checking import FLOATS, dtype_problem, equal_problem, refuse
from real.kernels.launching import Launch


@triton.jit
def _multiplied(a, b, total, WIDEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + a b."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _grouped(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, offset_ptr, out_ptr, experts, n, k, w_expert, w_k, w_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """out[rows of e] = x[rows of e] (., k) times w[e] (k, n)."""
    tile = tl.program_id(0)
    expert, tiles, first, last = -1, 0, 0, 0
    for e in range(experts):
        begin = tl.load(offset_ptr + e)
        end = tl.load(offset_ptr + e + 1)
        own = tl.cdiv(end - begin, BLOCK_M)
        here = (tile >= tiles) & (tile < tiles + own)
        expert = tl.where(here, e, expert)
        first = tl.where(here, begin + (tile - tiles) * BLOCK_M, first)
        last = tl.where(here, end, last)
        tiles += own
    if expert >= 0:
        row = first + tl.arange(0, BLOCK_M)
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        step = tl.arange(0, BLOCK_K)
        x_at = x_ptr + row[:, None].to(tl.int64) * k + step[None, :]
        w_at = w_ptr + expert.to(tl.int64) * w_expert + step[:, None].to(tl.int64) * w_k + column[None, :] * w_n
        total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for start in range(0, k, BLOCK_K):
            inside = start + step < k
            x = tl.load(x_at, mask=(row < last)[:, None] & inside[None, :], other=0.0)
            w = tl.load(w_at, mask=inside[:, None] & (column < n)[None, :], other=0.0)
            total = _multiplied(x, w, total, WIDEN)
            x_at += BLOCK_K
            w_at += BLOCK_K * w_k
        out_at = out_ptr + row[:, None].to(tl.int64) * n + column[None, :]
        tl.store(out_at, total, mask=(row < last)[:, None] & (column < n)[None, :])


@triton.jit
def _grouped_weight(  # type: ignore[no-untyped-def]
    x_ptr, grad_ptr, offset_ptr, out_ptr, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """out[e] (k, n) = transposed x[rows of e] (., k) times grad[rows of e] (., n); zeros for an expert without rows."""
    expert = tl.program_id(2)
    begin = tl.load(offset_ptr + expert)
    end = tl.load(offset_ptr + expert + 1)
    left = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(begin, end, BLOCK_K):
        row = start + step
        inside = row < end
        x = tl.load(
            x_ptr + row[None, :].to(tl.int64) * k + left[:, None], mask=(left < k)[:, None] & inside[None, :], other=0.0
        )
        grad = tl.load(
            grad_ptr + row[:, None].to(tl.int64) * n + column[None, :],
            mask=inside[:, None] & (column < n)[None, :],
            other=0.0,
        )
        total = _multiplied(x, grad, total, WIDEN)
    out_at = out_ptr + expert.to(tl.int64) * k * n + left[:, None].to(tl.int64) * n + column[None, :]
    tl.store(out_at, total, mask=(left < k)[:, None] & (column < n)[None, :])


def _constants(m: int, n: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """Sides within 16 and 64: experts of a mixture have few rows each; in float32 products run without tensor cores.

    The interpreter multiplies the bits of bfloat16 as if they were integers, so there operands are widened.
    """
    side = 64 if dtype != torch.float32 else 32
    return {
        "BLOCK_M": min(max(triton.next_power_of_2(m), 16), side),
        "BLOCK_N": min(max(triton.next_power_of_2(n), 16), side),
        "BLOCK_K": 32,
        "WIDEN": dtype == torch.bfloat16 and bool(knobs.runtime.interpret),
    }


def grouped_launch(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, out: torch.Tensor) -> Launch:
    """`x` (rows, k) and `out` (rows, n) contiguous, `w` (experts, k, n) of any strides, `offset` (experts + 1,) int32."""
    (rows, k), (experts, _, n) = x.shape, w.shape
    tile = _constants(ceil(rows / experts), n, x.dtype)
    return Launch(
        kernel=_grouped,
        grid=(ceil(rows / tile["BLOCK_M"]) + experts, ceil(n / tile["BLOCK_N"])),
        arguments={
            "x_ptr": x,
            "w_ptr": w,
            "offset_ptr": offset,
            "out_ptr": out,
            "experts": experts,
            "n": n,
            "k": k,
            **dict(zip(("w_expert", "w_k", "w_n"), w.stride(), strict=True)),
        },
        constants=tile,
        num_stages=2,
        flops=2 * rows * n * k,
    )


def grouped_weight_launch(x: torch.Tensor, grad: torch.Tensor, offset: torch.Tensor, out: torch.Tensor) -> Launch:
    """`x` (rows, k), `grad` (rows, n) and `out` (experts, k, n), all contiguous."""
    (rows, k), (experts, _, n) = x.shape, out.shape
    tile = _constants(k, n, x.dtype)
    return Launch(
        kernel=_grouped_weight,
        grid=(ceil(k / tile["BLOCK_M"]), ceil(n / tile["BLOCK_N"]), experts),
        arguments={"x_ptr": x, "grad_ptr": grad, "offset_ptr": offset, "out_ptr": out, "n": n, "k": k},
        constants=tile,
        num_stages=2,
        flops=2 * rows * n * k,
    )


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = x.contiguous()
        ctx.save_for_backward(x, w, offset)
        return _product(x, w, offset)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        x, w, offset = ctx.saved_tensors
        grad = grad.contiguous()
        dw = torch.empty(w.shape, dtype=w.dtype, device=w.device)
        if dw.numel():
            grouped_weight_launch(x, grad, offset, dw).run()
        return _product(grad, w.mT, offset), dw, None


def _product(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(len(x), w.shape[2])
    if out.numel():
        grouped_launch(x, w, offset, out).run()
    return out


def grouped_gemm(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """(rows, n): rows offset[e] to offset[e + 1] of `x` (rows, k) times `w[e]` (k, n); sums in float32, differentiable in x and w.

    `offset` (experts + 1,) int32 on the device of `x`, from 0 to the number of rows, never falling; an expert may have no rows, or
    all. Raises InputError where shapes or dtypes do not fit.
    """
    refuse("grouped_gemm", _problems(x, w, offset))
    out: torch.Tensor = _Grouped.apply(x, w, offset)
    return out


def reference_grouped_gemm(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """The same in torch, one expert after the other."""
    ends = offset.tolist()
    parts = [x[a:b].float() @ w[e].float() for e, (a, b) in enumerate(pairwise(ends))]
    return torch.cat(parts).to(x.dtype)


def _problems(x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor) -> list[Problem | None]:
    axes = [
        equal_problem(f, f"{t.dim()} axes", f"{d} axes")
        for f, t, d in (("x", x, 2), ("w", w, 3), ("offset", offset, 1))
    ]
    if any(axes):
        return axes
    return [
        dtype_problem("x", x, FLOATS),
        equal_problem("w", str(w.dtype), str(x.dtype)),
        equal_problem("w", tuple(w.shape[1:2]), tuple(x.shape[1:2]), "The reduction of x and w is one."),
        dtype_problem("offset", offset, (torch.int32,)),
        equal_problem("offset", tuple(offset.shape), (len(w) + 1,)),
    ]
