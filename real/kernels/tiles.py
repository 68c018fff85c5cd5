"""Which tile of a product one program computes, and into how many parts long sums are split."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import torch

from real.kernels.blocks import multiplied_in
from real.kernels.launching import Argument, Launch

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


def part_length(k: int, parts: int, depth: int) -> int:
    """Of each part of a reduction: a multiple of `depth`, of which the last part may have less."""
    return -(-k // (parts * depth)) * depth


def together(parts: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Sum of float32 parts along the first axis, plus `bias` along the last, rounded to `dtype`."""
    total = parts.sum(0)
    return (total if bias is None else total + bias.float()).to(dtype)


def tiled_launch(
    kernel: object,
    chosen: Tile,
    *,
    size: tuple[int, int],
    batch: int,
    parts: int = 1,
    arguments: Mapping[str, Argument],
    constants: Mapping[str, object],
    dtype: torch.dtype,
    flops: int,
) -> Launch:
    """One program for each tile of a result of `size`, for each of a batch (or group) and each part of the sum."""
    return Launch(
        kernel=kernel,
        grid=(chosen.programs(*size), batch, parts),
        arguments=arguments,
        constants={**constants, **multiplied_in(dtype), **chosen.constants},
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        flops=flops,
    )
