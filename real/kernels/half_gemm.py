"""Product in float16 or bfloat16 that rounds its operands as it loads them; sums are float32.

The gradients of a linear layer are two more such products, with the strides of transposed operands.
"""

import torch

from costmodels.errors import Problem
from real.kernels.checking import half_problems, refuse
from real.kernels.gemm import batched, gemm_launch, parts_of
from real.kernels.tiles import capability_of, together


def half_gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """a b + bias: (m, k) and (k, n) to (m, n), or (batch, m, k) and (batch, k, n) to (batch, m, n).

    `a` and `b` are float32, float16 or bfloat16 of any strides; each element is rounded to `dtype` (float16 or
    bfloat16; what float16 cannot hold becomes infinite) as it is loaded. Sums and `bias` (n,) are float32, the result
    is rounded once, to `out_dtype` (`dtype` if None). Where the result is small and k long, parts of the sum are added
    in float32 in a fixed order. Raises InputError where shapes or dtypes do not fit.
    """
    out_dtype = out_dtype or dtype
    _check(a, b, bias, dtype, out_dtype)
    deep_a, deep_b = batched(a), batched(b)
    capability = capability_of(a.device)
    parts = parts_of(deep_a, deep_b, capability)
    shape = (parts, len(deep_a), deep_a.shape[1], deep_b.shape[2])
    out = torch.empty(shape, dtype=torch.float32 if parts > 1 else out_dtype, device=a.device)
    first_bias = bias if parts == 1 else None
    gemm_launch(deep_a, deep_b, None, None, first_bias, out, dtype, capability).run()
    result = out[0] if parts == 1 else together(out, bias, out_dtype)
    return result if a.dim() == 3 else result[0]


def linear_input_gradient(
    gradient: torch.Tensor, weight: torch.Tensor, *, dtype: torch.dtype, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Of y = x weight^T: gradient (m, n) of y and weight (n, k) to (m, k), the gradient of x."""
    return half_gemm(gradient, weight, dtype=dtype, out_dtype=out_dtype)


def linear_weight_gradient(
    gradient: torch.Tensor, x: torch.Tensor, *, dtype: torch.dtype, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Of y = x weight^T: gradient (m, n) of y and x (m, k) to (n, k), the gradient of the weight."""
    return half_gemm(gradient.mT, x, dtype=dtype, out_dtype=out_dtype)


def _check(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    shapes = Problem("a and b", f"{tuple(a.shape)} and {tuple(b.shape)}", "(m, k) and (k, n), or a batch of them")
    if a.dim() not in (2, 3) or a.dim() != b.dim() or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        refuse("half_gemm", [shapes])
    refuse("half_gemm", half_problems({"a": a, "b": b}, dtype, out_dtype, bias, b.shape[-1]))


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` as torch multiplies it: on CUDA in `dtype`; on the CPU its values in float32, whose products of halves are
    exact."""
    return x.to(dtype) if x.is_cuda else x.to(dtype).float()


def reference_half_gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The same in torch. On CUDA torch's product is in `dtype`, so a wider `out_dtype` (and the bias) come after its
    rounding."""
    out_dtype = out_dtype or dtype
    _check(a, b, bias, dtype, out_dtype)
    total = rounded(a, dtype) @ rounded(b, dtype)
    return (total if bias is None else total.float() + bias.float()).to(out_dtype)


def reference_linear_input_gradient(
    gradient: torch.Tensor, weight: torch.Tensor, *, dtype: torch.dtype, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The same in torch."""
    return reference_half_gemm(gradient, weight, dtype=dtype, out_dtype=out_dtype)


def reference_linear_weight_gradient(
    gradient: torch.Tensor, x: torch.Tensor, *, dtype: torch.dtype, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The same in torch."""
    return reference_half_gemm(gradient.mT, x, dtype=dtype, out_dtype=out_dtype)
