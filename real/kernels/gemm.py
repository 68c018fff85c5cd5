"""The kernel behind matrix products of every precision: operands of any strides, sums of long reductions in parts."""

import torch
import triton
import triton.language as tl

from real.kernels.blocks import both, finished, multiplied, tile_of, write
from real.kernels.launching import Launch
from real.kernels.tiles import Tile, part_length, splits, tile, tiled_launch, wide


@triton.jit
def _gemm(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, a_scale_ptr, b_scale_ptr, bias_ptr, out_ptr, m, n, k, part,
    a_batch, a_m, a_k, b_batch, b_k, b_n, out_part, out_batch, out_m,
    A_PER_ROW: tl.constexpr, B_PER_COLUMN: tl.constexpr,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr, TOTAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    rows, columns = tile_of(m, n, BLOCK_M, BLOCK_N, GROUP_M)
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(2).to(tl.int64) * part
    depth = tl.arange(0, BLOCK_K)
    a_at = a_ptr + batch * a_batch + rows.to(tl.int64)[:, None] * a_m + (first + depth)[None, :] * a_k
    b_at = b_ptr + batch * b_batch + (first + depth)[:, None] * b_k + columns.to(tl.int64)[None, :] * b_n
    length = tl.minimum(k - first, part).to(tl.int32)
    total = tl.zeros((BLOCK_M, BLOCK_N), TOTAL)
    for start in range(0, length, BLOCK_K):
        left = depth < length - start
        a = tl.load(a_at, mask=both(rows < m, left), other=0.0)
        b = tl.load(b_at, mask=both(left, columns < n), other=0.0)
        total = multiplied(a, b, total, DTYPE, WIDEN, TOTAL)
        a_at += tl.cast(a_k, tl.int64) * BLOCK_K
        b_at += tl.cast(b_k, tl.int64) * BLOCK_K
    result = finished(
        total, a_scale_ptr, b_scale_ptr, bias_ptr, rows, columns, rows < m, columns < n, A_PER_ROW, B_PER_COLUMN
    )
    out_at = out_ptr + tl.program_id(2).to(tl.int64) * out_part + batch * out_batch
    write(out_at + rows.to(tl.int64)[:, None] * out_m + columns[None, :], result, both(rows < m, columns < n))


def gemm_launch(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor | None,
    b_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> Launch:
    """(batch, m, k) and (batch, k, n) to a contiguous (parts, batch, m, n), each part of the sum by itself."""
    (batch, m, k), n, parts = a.shape, b.shape[2], len(out)
    chosen = _tile(a, b, capability)
    return tiled_launch(
        _gemm,
        chosen,
        size=(m, n),
        batch=batch,
        parts=parts,
        arguments={
            "a_ptr": a,
            "b_ptr": b,
            "a_scale_ptr": a_scale,
            "b_scale_ptr": b_scale,
            "bias_ptr": bias,
            "out_ptr": out,
            "m": m,
            "n": n,
            "k": k,
            "part": part_length(k, parts, chosen.k),
            **dict(zip(("a_batch", "a_m", "a_k"), a.stride(), strict=True)),
            **dict(zip(("b_batch", "b_k", "b_n"), b.stride(), strict=True)),
            **dict(zip(("out_part", "out_batch", "out_m"), out.stride(), strict=False)),
        },
        constants={
            "A_PER_ROW": a_scale is not None and a_scale.numel() > 1,
            "B_PER_COLUMN": b_scale is not None and b_scale.numel() > 1,
        },
        dtype=dtype,
        flops=2 * batch * m * n * k,
    )


def _tile(a: torch.Tensor, b: torch.Tensor, capability: tuple[int, int]) -> Tile:
    widest_B = max(a.element_size(), b.element_size())
    return tile(a.shape[1], b.shape[2], widest_B, capability, batch=len(a), wide_loads=wide(a, b))


def parts_of(a: torch.Tensor, b: torch.Tensor, capability: tuple[int, int]) -> int:
    """Into how many parts the sum of a product (batch, m, k) (batch, k, n) is split."""
    (batch, m, k), n = a.shape, b.shape[2]
    chosen = _tile(a, b, capability)
    return splits(batch * chosen.programs(m, n), k, chosen.k)


def batched(x: torch.Tensor) -> torch.Tensor:
    """A matrix as a batch of one."""
    return x if x.dim() == 3 else x[None]
