"""Product of int8 matrices: int32 sums, which scales and bias turn into floating point before they leave the chip.

Sums are exact as long as they fit into int32, which 133,144 products in [-127, 127] do; longer reductions are refused.
"""

import torch

from costmodels.errors import Problem
from real.kernels.checking import dtype_problem, reduction_problem, refuse, scale_problem, scaling_problems
from real.kernels.gemm import batched, gemm_launch
from real.kernels.tiles import capability_of


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
    a, b = batched(x), batched(w).mT
    out = torch.empty(1, len(a), a.shape[1], b.shape[2], dtype=out_dtype, device=x.device)
    gemm_launch(a, b, x_scale, w_scale, bias, out, torch.int8, capability_of(x.device)).run()
    return out[0] if x.dim() == 3 else out[0, 0]


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
