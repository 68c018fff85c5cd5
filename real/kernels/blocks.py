"""What programs of every product share on the device: where their tile is, how operands are multiplied, how results are written."""

import torch
import triton
import triton.language as tl
from triton import knobs


def multiplied_in(dtype: torch.dtype) -> dict[str, object]:
    """What kernels need to know of the precision that they multiply in: sums of int8 are int32, those of halves float32.

    Triton's interpreter multiplies bfloat16 as the integers that it keeps it in; there the rounded operands are widened
    to float32, in which products of halves are exact.
    """
    kinds = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.int8: tl.int8}
    return {
        "DTYPE": kinds[dtype],
        "WIDEN": knobs.runtime.interpret and dtype == torch.bfloat16,
        "TOTAL": tl.int32 if dtype == torch.int8 else tl.float32,
    }


@triton.jit
def tile_of(  # type: ignore[no-untyped-def]
    n_rows, n_columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr
):  # fmt: skip
    """(BLOCK_M,) rows and (BLOCK_N,) columns that this program computes; columns of `GROUP_M` tiles come one after the other."""
    n_m, n_n = tl.cdiv(n_rows, BLOCK_M), tl.cdiv(n_columns, BLOCK_N)
    program, group_size = tl.program_id(0), GROUP_M * n_n
    first_m = program // group_size * GROUP_M
    height = tl.minimum(n_m - first_m, GROUP_M)
    within = program % group_size
    rows = (first_m + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    return rows, within // height * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def both(rows, columns):  # type: ignore[no-untyped-def]
    """(BLOCK_M, BLOCK_N) where both a row and a column are."""
    return rows[:, None] & columns[None, :]


@triton.jit
def multiplied(a, b, total, DTYPE: tl.constexpr, WIDEN: tl.constexpr, TOTAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + a b, operands rounded to DTYPE."""
    a, b = a.to(DTYPE), b.to(DTYPE)
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, out_dtype=TOTAL)


@triton.jit
def finished(  # type: ignore[no-untyped-def]
    total, row_scale_ptr, column_scale_ptr, bias_ptr, rows, columns, row_mask, column_mask,
    PER_ROW: tl.constexpr, PER_COLUMN: tl.constexpr,
):  # fmt: skip
    """Epilogue: (total * row scale) * column scale + bias in float32; what is None is left out.

    One scale after the other: the product of two tiny scales would underflow.
    """
    if row_scale_ptr is not None:
        if PER_ROW:  # noqa: SIM108 - decided while compiling
            row_scale = tl.load(row_scale_ptr + rows, mask=row_mask, other=0.0)[:, None]
        else:
            row_scale = tl.load(row_scale_ptr)
        if PER_COLUMN:
            column_scale = tl.load(column_scale_ptr + columns, mask=column_mask, other=0.0)[None, :]
        else:
            column_scale = tl.load(column_scale_ptr)
        total = total.to(tl.float32) * row_scale * column_scale
    if bias_ptr is not None:
        total += tl.load(bias_ptr + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def write(at, result, mask):  # type: ignore[no-untyped-def]
    """`result` rounded to what `at` points to."""
    tl.store(at, result.to(at.dtype.element_ty), mask=mask)
