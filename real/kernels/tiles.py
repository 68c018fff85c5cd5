"""Which tile of a product one program computes, in which order programs visit tiles, and what becomes of the sums."""

from dataclasses import dataclass
from math import ceil

import torch
import triton
import triton.language as tl
from triton import knobs

GROUP_M = 8
"""Programs that run at the same time form blocks of 8 rows of tiles: they share columns of B in L2 and not only one row
of A."""

REDUCTION_B = 128
"""Bytes of the reduction in a tile: one row of swizzled shared memory, eight 16-byte copies, four 32-byte steps of an mma."""

PROGRAMS = 128
"""assumption: about one program for each multiprocessor (A100 108, H100 132, L40S 142) fills a GPU; smaller tiles from
there on."""

MAX_STAGES = 4
"""assumption: four stages of 32 KiB hide the latency of memory behind tensor cores; fewer where shared memory ends."""

SHARED_B = {
    (8, 0): 163 * 1024,
    (8, 6): 99 * 1024,
    (8, 7): 163 * 1024,
    (8, 9): 99 * 1024,
    (9, 0): 227 * 1024,
    (10, 0): 227 * 1024,
    (12, 0): 99 * 1024,
}
"""Shared memory that one block can have (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """`m` x `n` results of a program, `k` of the reduction in a step."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int

    @property
    def constants(self) -> dict[str, int]:
        """As kernels name them."""
        return {"BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_K": self.k, "GROUP_M": GROUP_M}

    def programs(self, m: int, n: int) -> int:
        """Tiles of an m x n result."""
        return ceil(m / self.m) * ceil(n / self.n)


def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; that of an A100 where Triton interprets on the CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)


def tile(
    m: int, n: int, widest_B: int, capability: tuple[int, int], *, batch: int = 1, wide_loads: bool = True
) -> Tile:
    """A tile for m x n results whose operands have elements of up to `widest_B` bytes.

    128 x 128 reads least memory for each product among tiles whose float32 sums leave a thread of 8 warps 64 registers
    for them. Narrow results get narrow tiles, not below 16, the rows of an mma. If these are too few programs, the
    longer side is halved down to 64. Below 64 x 128, four warps suffice: each thread holds at most 32 sums.

    Without `wide_loads` operands come element by element, each with an address in registers: then steps are as short as
    an mma of int8 allows (32), shared by 8 warps, and none is loaded ahead.
    """
    rows, columns = _side(m), _side(n)
    while batch * ceil(m / rows) * ceil(n / columns) < PROGRAMS and max(rows, columns) > 64:
        rows, columns = (rows // 2, columns) if rows >= columns else (rows, columns // 2)
    if not wide_loads:
        return Tile(m=rows, n=columns, k=32, num_warps=8, num_stages=1)
    shared_B = SHARED_B.get(capability, min(SHARED_B.values()))
    stage_B = (rows + columns) * REDUCTION_B
    return Tile(
        m=rows,
        n=columns,
        k=REDUCTION_B // widest_B,
        num_warps=8 if rows * columns >= 64 * 128 else 4,
        num_stages=max(1, min(MAX_STAGES, shared_B // stage_B)),
    )


def wide(*operands: torch.Tensor) -> bool:
    """Whether matrices (the last two axes) have neighbours in memory and rows that start at multiples of 16 elements."""
    strides = [t.stride()[-2:] for t in operands]
    return all((outer == 1 and inner % 16 == 0) or (inner == 1 and outer % 16 == 0) for outer, inner in strides)


def _side(size: int) -> int:
    """The power of two from `size` up, within 16 and 128."""
    return min(max(1 << max(size - 1, 0).bit_length(), 16), 128)


def splits(programs: int, k: int, depth: int) -> int:
    """Into how many parts a long reduction is split where the result has too few tiles; each part keeps at least 8 steps.

    Parts are summed by torch in a fixed order, so results do not depend on which program ends first.
    """
    return max(1, min(PROGRAMS // max(programs, 1), k // (8 * depth)))


@triton.jit
def place(program, n_m, n_n, GROUP_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row and column of the tile that a program computes, columns of `GROUP_M` tiles one after the other."""
    group_size = GROUP_M * n_n
    first_m = program // group_size * GROUP_M
    height = tl.minimum(n_m - first_m, GROUP_M)
    within = program % group_size
    return first_m + within % height, within // height


def multiplied_in(dtype: torch.dtype) -> dict[str, object]:
    """What kernels need to know of the precision that they multiply in.

    Triton's interpreter multiplies bfloat16 as the integers that it keeps it in; there the rounded operands are widened
    to float32, in which products of halves are exact.
    """
    kinds = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.int8: tl.int8}
    return {"DTYPE": kinds[dtype], "WIDEN": knobs.runtime.interpret and dtype == torch.bfloat16}


@triton.jit
def narrowed(x, DTYPE: tl.constexpr, WIDEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """`x` rounded to DTYPE."""
    x = x.to(DTYPE)
    if WIDEN:
        x = x.to(tl.float32)
    return x


@triton.jit
def finished(  # type: ignore[no-untyped-def]
    total, x_scale_ptr, w_scale_ptr, bias_ptr, rows, columns, row_mask, column_mask,
    X_PER_ROW: tl.constexpr, W_PER_COLUMN: tl.constexpr,
):  # fmt: skip
    """Epilogue: (total * x_scale) * w_scale + bias in float32; what is None is left out.

    One scale after the other: the product of two tiny scales would underflow.
    """
    if x_scale_ptr is not None:
        if X_PER_ROW:  # noqa: SIM108 - decided while compiling
            x_scale = tl.load(x_scale_ptr + rows, mask=row_mask, other=0.0)[:, None]
        else:
            x_scale = tl.load(x_scale_ptr)
        if W_PER_COLUMN:  # noqa: SIM108
            w_scale = tl.load(w_scale_ptr + columns, mask=column_mask, other=0.0)[None, :]
        else:
            w_scale = tl.load(w_scale_ptr)
        total = total.to(tl.float32) * x_scale * w_scale
    if bias_ptr is not None:
        total += tl.load(bias_ptr + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    return total
