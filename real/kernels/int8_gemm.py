"""Product of int8 matrices: int32 sums, which scales and bias turn into floating point before they leave the chip.

Sums are exact as long as they fit into int32, which 133,144 products in [-127, 127] do; longer reductions are refused.
"""

import torch
import triton
import triton.language as tl

from costmodels.errors import Problem
from real.kernels.checking import (
    FLOATS,
    dtype_problem,
    equal_problem,
    named_dtype_problem,
    reduction_problem,
    refuse,
    scale_problem,
)
from real.kernels.launching import Launch
from real.kernels.tiles import capability_of, finished, place, tile, wide


@triton.jit
def _int8_gemm(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr, m, n, k,
    x_batch, x_m, x_k, w_batch, w_n, w_k, out_batch, out_m,
    X_PER_ROW: tl.constexpr, W_PER_COLUMN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    at_m, at_n = place(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP_M)
    batch = tl.program_id(1).to(tl.int64)
    rows = at_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = at_n * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    x_at = x_ptr + batch * x_batch + rows.to(tl.int64)[:, None] * x_m + depth[None, :] * x_k
    w_at = w_ptr + batch * w_batch + columns.to(tl.int64)[None, :] * w_n + depth[:, None] * w_k
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, k, BLOCK_K):
        left = depth < k - start
        x = tl.load(x_at, mask=(rows < m)[:, None] & left[None, :], other=0)
        w = tl.load(w_at, mask=(columns < n)[None, :] & left[:, None], other=0)
        total = tl.dot(x, w, total, out_dtype=tl.int32)
        x_at += BLOCK_K * x_k
        w_at += BLOCK_K * w_k
    result = finished(
        total, x_scale_ptr, w_scale_ptr, bias_ptr, rows, columns, rows < m, columns < n, X_PER_ROW, W_PER_COLUMN
    )
    out_at = out_ptr + batch * out_batch + rows.to(tl.int64)[:, None] * out_m + columns[None, :]
    tl.store(out_at, result.to(out_ptr.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


def int8_gemm_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    capability: tuple[int, int],
) -> Launch:
    """(batch, m, k) and (batch, n, k) to a contiguous (batch, m, n)."""
    batch, m, k = x.shape
    n = w.shape[1]
    chosen = tile(m, n, 1, capability, batch=batch, wide_loads=wide(x, w))
    return Launch(
        kernel=_int8_gemm,
        grid=(chosen.programs(m, n), batch),
        arguments={
            "x_ptr": x,
            "w_ptr": w,
            "x_scale_ptr": x_scale,
            "w_scale_ptr": w_scale,
            "bias_ptr": bias,
            "out_ptr": out,
            "m": m,
            "n": n,
            "k": k,
            **dict(zip(("x_batch", "x_m", "x_k"), x.stride(), strict=True)),
            **dict(zip(("w_batch", "w_n", "w_k"), w.stride(), strict=True)),
            "out_batch": out.stride(0),
            "out_m": out.stride(1),
        },
        constants={
            "X_PER_ROW": x_scale is not None and x_scale.numel() > 1,
            "W_PER_COLUMN": w_scale is not None and w_scale.numel() > 1,
            **chosen.constants,
        },
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        flops=2 * batch * m * n * k,
    )


def int8_gemm(
    x: torch.Tensor,
    w: torch.Tensor,
    x_scale: torch.Tensor | None = None,
    w_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """x w^T: (m, k) and (n, k) to (m, n), or (batch, m, k) and (batch, n, k) to (batch, m, n).

    `x` and `w` are int8 of any strides (tensor cores want k contiguous; other operands are turned around on chip).
    `x_scale` is one float32 or (m,), `w_scale` one or (n,), `bias` (n,) in floating point. The result is (sum *
    x_scale) * w_scale + bias in float32, rounded to `out_dtype` (float32, float16, bfloat16); without scales and bias
    `out_dtype` is int32 and the sums themselves come out. Raises InputError where shapes or dtypes do not fit or k is
    longer than int32 holds.
    """
    _check(x, w, x_scale, w_scale, bias, out_dtype)
    deep_x, deep_w = (t if t.dim() == 3 else t[None] for t in (x, w))
    out = torch.empty(len(deep_x), deep_x.shape[1], deep_w.shape[1], dtype=out_dtype, device=x.device)
    int8_gemm_launch(deep_x, deep_w, x_scale, w_scale, bias, out, capability_of(x.device)).run()
    return out if x.dim() == 3 else out[0]


def _check(
    x: torch.Tensor,
    w: torch.Tensor,
    x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> None:
    shapes = Problem("x and w", f"{tuple(x.shape)} and {tuple(w.shape)}", "(m, k) and (n, k), or a batch of them")
    if x.dim() not in (2, 3) or x.dim() != w.dim() or x.shape[-1] != w.shape[-1] or x.shape[:-2] != w.shape[:-2]:
        refuse("int8_gemm", [shapes])
    m, n, k = x.shape[-2], w.shape[-2], x.shape[-1]
    refuse(
        "int8_gemm",
        (
            dtype_problem("x", x, (torch.int8,)),
            dtype_problem("w", w, (torch.int8,)),
            scale_problem("x_scale", x_scale, m),
            scale_problem("w_scale", w_scale, n),
            *scaling_problems(x_scale, w_scale, bias, n, out_dtype),
            reduction_problem(k),
        ),
    )


def scaling_problems(
    x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    n: int,
    out_dtype: torch.dtype,
) -> tuple[Problem | None, ...]:
    """Both scales or none; without them int32 and no bias."""
    scaled = x_scale is not None
    return (
        equal_problem(
            "w_scale", "given" if w_scale is not None else "None", "given" if scaled else "None", "Both or none."
        ),
        named_dtype_problem("out_dtype", out_dtype, FLOATS if scaled else (torch.int32,)),
        None if bias is None else equal_problem("bias", tuple(bias.shape), (n,)),
        Problem("bias", "given", "None", "A bias needs scales.") if bias is not None and not scaled else None,
    )


def reference_int8_gemm(
    x: torch.Tensor,
    w: torch.Tensor,
    x_scale: torch.Tensor | None = None,
    w_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The same in torch, whose own int8 product (`torch._int_mm`, tensor cores from sm_75 on) is exact as well."""
    _check(x, w, x_scale, w_scale, bias, out_dtype)
    total = torch.stack([_int_mm(a, b) for a, b in zip(x, w, strict=True)]) if x.dim() == 3 else _int_mm(x, w)
    return scaled(total, x_scale, w_scale, bias, out_dtype)


def _int_mm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """cuBLAS takes more than 16 rows and multiples of 8: zeros are added and cut off again."""
    (m, k), n = x.shape, len(w)
    more_m, more_n, more_k = max(17 - m, 0), -n % 8, -k % 8
    padded_x = torch.nn.functional.pad(x, (0, more_k, 0, more_m)).contiguous()
    padded_w = torch.nn.functional.pad(w, (0, more_k, 0, more_n)).contiguous()
    if not (m and n and k):
        return torch.zeros(m, n, dtype=torch.int32, device=x.device)
    return torch._int_mm(padded_x, padded_w.t())[:m, :n]


def scaled(
    total: torch.Tensor,
    x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """What the epilogue does: (total * x_scale) * w_scale + bias; channels of w are the last axis."""
    if x_scale is None or w_scale is None:
        return total
    rows = x_scale[:, None] if x_scale.numel() > 1 else x_scale.reshape(())
    result = total.float() * rows * w_scale
    return (result if bias is None else result + bias.float()).to(out_dtype)
