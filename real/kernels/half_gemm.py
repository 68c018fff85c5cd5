"""Product in float16 or bfloat16 that rounds its operands as it loads them; sums are float32.

The gradients of a linear layer are two more such products, with the strides of transposed operands.
"""

import torch
import triton
import triton.language as tl

from costmodels.errors import Problem
from real.kernels.checking import FLOATS, HALVES, dtype_problem, equal_problem, named_dtype_problem, refuse
from real.kernels.launching import Launch
from real.kernels.tiles import Tile, capability_of, finished, multiplied_in, narrowed, place, splits, tile, wide


@triton.jit
def _half_gemm(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, bias_ptr, out_ptr, m, n, k, part,
    a_batch, a_m, a_k, b_batch, b_k, b_n, out_part, out_batch, out_m,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    at_m, at_n = place(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP_M)
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(2).to(tl.int64) * part
    rows = at_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = at_n * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    a_at = a_ptr + batch * a_batch + rows.to(tl.int64)[:, None] * a_m + (first + depth)[None, :] * a_k
    b_at = b_ptr + batch * b_batch + (first + depth)[:, None] * b_k + columns.to(tl.int64)[None, :] * b_n
    length = tl.minimum(k - first, part).to(tl.int32)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, length, BLOCK_K):
        left = depth < length - start
        a = tl.load(a_at, mask=(rows < m)[:, None] & left[None, :], other=0.0)
        b = tl.load(b_at, mask=(columns < n)[None, :] & left[:, None], other=0.0)
        total = tl.dot(narrowed(a, DTYPE, WIDEN), narrowed(b, DTYPE, WIDEN), total)
        a_at += tl.cast(a_k, tl.int64) * BLOCK_K
        b_at += tl.cast(b_k, tl.int64) * BLOCK_K
    result = finished(total, None, None, bias_ptr, rows, columns, rows < m, columns < n, False, False)
    out_at = out_ptr + tl.program_id(2).to(tl.int64) * out_part + batch * out_batch
    out_at += rows.to(tl.int64)[:, None] * out_m + columns[None, :]
    tl.store(out_at, result.to(out_ptr.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


def half_gemm_launch(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> Launch:
    """(batch, m, k) and (batch, k, n) to a contiguous (parts, batch, m, n), each part of the sum by itself."""
    (batch, m, k), n, parts = a.shape, b.shape[2], len(out)
    chosen = _tile(a, b, capability)
    part = -(-k // (parts * chosen.k)) * chosen.k
    return Launch(
        kernel=_half_gemm,
        grid=(chosen.programs(m, n), batch, parts),
        arguments={
            "a_ptr": a,
            "b_ptr": b,
            "bias_ptr": bias,
            "out_ptr": out,
            "m": m,
            "n": n,
            "k": k,
            "part": part,
            **dict(zip(("a_batch", "a_m", "a_k"), a.stride(), strict=True)),
            **dict(zip(("b_batch", "b_k", "b_n"), b.stride(), strict=True)),
            **dict(zip(("out_part", "out_batch", "out_m"), out.stride(), strict=False)),
        },
        constants={**multiplied_in(dtype), **chosen.constants},
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
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
    _check("half_gemm", a, b, bias, dtype, out_dtype)
    deep_a, deep_b = (t if t.dim() == 3 else t[None] for t in (a, b))
    capability = capability_of(a.device)
    parts = parts_of(deep_a, deep_b, capability)
    shape = (parts, len(deep_a), deep_a.shape[1], deep_b.shape[2])
    out = torch.empty(shape, dtype=torch.float32 if parts > 1 else out_dtype, device=a.device)
    half_gemm_launch(deep_a, deep_b, bias if parts == 1 else None, out, dtype, capability).run()
    result = out[0] if parts == 1 else together(out, bias, out_dtype)
    return result if a.dim() == 3 else result[0]


def together(parts: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Sum of float32 parts along the first axis, plus `bias` along the last, rounded to `dtype`."""
    total = parts.sum(0)
    return (total if bias is None else total + bias.float()).to(dtype)


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
    kernel: str,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> None:
    shapes = Problem("a and b", f"{tuple(a.shape)} and {tuple(b.shape)}", "(m, k) and (k, n), or a batch of them")
    if a.dim() not in (2, 3) or a.dim() != b.dim() or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        refuse(kernel, [shapes])
    refuse(
        kernel,
        (
            dtype_problem("a", a, FLOATS),
            dtype_problem("b", b, FLOATS),
            named_dtype_problem("dtype", dtype, HALVES),
            named_dtype_problem("out_dtype", out_dtype, FLOATS),
            None if bias is None else equal_problem("bias", tuple(bias.shape), (b.shape[-1],)),
        ),
    )


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
    _check("half_gemm", a, b, bias, dtype, out_dtype)
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
