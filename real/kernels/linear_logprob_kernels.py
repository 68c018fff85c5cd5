"""Blocks of logits that never leave a program: what remains of them forward, and what they send back.

`linear_logprob.py` says what they are for and puts them together.
"""

from math import ceil

import torch
import triton
import triton.language as tl

from real.kernels.blocks import both, multiplied, multiplied_in, tile_of, write
from real.kernels.launching import Launch
from real.kernels.tiles import PROGRAMS, Tile, part_length, tile, tiled_launch


@triton.jit
def _logits(  # type: ignore[no-untyped-def]
    hidden_ptr, weight_ptr, rows, columns, n, end, width,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr, TOTAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of hidden weight^T; `hidden` (n, width) and `weight` (at least end, width) contiguous."""
    depth = tl.arange(0, BLOCK_K)
    hidden_at = hidden_ptr + rows.to(tl.int64)[:, None] * width + depth[None, :]
    weight_at = weight_ptr + columns.to(tl.int64)[None, :] * width + depth[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), TOTAL)
    for start in range(0, width, BLOCK_K):
        left = depth < width - start
        hidden = tl.load(hidden_at, mask=both(rows < n, left), other=0.0)
        weight = tl.load(weight_at, mask=both(left, columns < end), other=0.0)
        total = multiplied(hidden, weight, total, DTYPE, WIDEN, TOTAL)
        hidden_at += BLOCK_K
        weight_at += BLOCK_K
    return total


@triton.jit
def _statistics(  # type: ignore[no-untyped-def]
    hidden_ptr, weight_ptr, targets_ptr, out_ptr, n, vocabulary, width, part,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr, TOTAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Largest, sum, weighted sum and own logit of each row over one part of the vocabulary: out (parts, 4, n)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    target = tl.load(targets_ptr + rows, mask=rows < n, other=-1)
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, vocabulary)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    weighted = tl.zeros((BLOCK_M,), tl.float32)
    own = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(first, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        logits = _logits(
            hidden_ptr, weight_ptr, rows, columns, n, end, width, DTYPE, WIDEN, TOTAL, BLOCK_M, BLOCK_N, BLOCK_K
        )
        own += tl.sum(tl.where(columns[None, :] == target[:, None], logits, 0.0), axis=1)
        found = tl.maximum(largest, tl.max(tl.where((columns < end)[None, :], logits, float("-inf")), axis=1))
        kept = tl.exp(largest - found)
        grown = tl.where((columns < end)[None, :], tl.exp(logits - found[:, None]), 0.0)
        total = total * kept + tl.sum(grown, axis=1)
        weighted = weighted * kept + tl.sum(grown * logits, axis=1)
        largest = found
    out_at = out_ptr + tl.program_id(1).to(tl.int64) * 4 * n + rows
    tl.store(out_at, largest, mask=rows < n)
    tl.store(out_at + n, total, mask=rows < n)
    tl.store(out_at + 2 * n, weighted, mask=rows < n)
    tl.store(out_at + 3 * n, own, mask=rows < n)


@triton.jit
def _logit_gradient(  # type: ignore[no-untyped-def]
    hidden_ptr, weight_ptr, targets_ptr, log_sum_ptr, mean_ptr, of_logprob_ptr, of_entropy_ptr, out_ptr,
    n, vocabulary, width, first,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr, TOTAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits of one slice, the `vocabulary` tokens from `first`: out (n, vocabulary)."""
    rows, columns = tile_of(n, vocabulary, BLOCK_M, BLOCK_N, GROUP_M)
    logits = _logits(
        hidden_ptr, weight_ptr, rows, columns, n, vocabulary, width, DTYPE, WIDEN, TOTAL, BLOCK_M, BLOCK_N, BLOCK_K
    )
    here = rows < n
    target = tl.load(targets_ptr + rows, mask=here, other=-1) - first
    log_sum = tl.load(log_sum_ptr + rows, mask=here, other=0.0)
    mean = tl.load(mean_ptr + rows, mask=here, other=0.0)
    of_logprob = tl.load(of_logprob_ptr + rows, mask=here, other=0.0)
    of_entropy = tl.load(of_entropy_ptr + rows, mask=here, other=0.0)
    share = tl.exp(logits - log_sum[:, None])
    gradient = -share * (of_logprob[:, None] + of_entropy[:, None] * (logits - mean[:, None]))
    gradient += tl.where(columns[None, :] == target[:, None], of_logprob[:, None], 0.0)
    out_at = out_ptr + rows.to(tl.int64)[:, None] * vocabulary + columns[None, :]
    write(out_at, gradient, both(here, columns < vocabulary))


def statistics_launch(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, out: torch.Tensor, capability: tuple[int, int]
) -> Launch:
    """`hidden` (n, width), `weight` (vocabulary, width), `targets` (n,), `out` (parts, 4, n) float32; all contiguous."""
    (n, width), vocabulary, parts = hidden.shape, len(weight), len(out)
    chosen = _tile(n, vocabulary, hidden, capability)
    return Launch(
        kernel=_statistics,
        grid=(ceil(n / chosen.m), parts),
        arguments={
            "hidden_ptr": hidden,
            "weight_ptr": weight,
            "targets_ptr": targets,
            "out_ptr": out,
            "n": n,
            "vocabulary": vocabulary,
            "width": width,
            "part": part_length(vocabulary, parts, chosen.n),
        },
        constants={
            **multiplied_in(hidden.dtype),
            "BLOCK_M": chosen.m,
            "BLOCK_N": chosen.n,
            "BLOCK_K": chosen.k,
        },
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        flops=2 * n * vocabulary * width,
    )


def parts_of(n: int, vocabulary: int, hidden: torch.Tensor, capability: tuple[int, int]) -> int:
    """Parts of the vocabulary that programs of one row of tiles share; together they fill a GPU."""
    chosen = _tile(n, vocabulary, hidden, capability)
    parts = max(1, min(PROGRAMS // ceil(n / chosen.m), ceil(vocabulary / chosen.n)))
    return ceil(vocabulary / part_length(vocabulary, parts, chosen.n))


def logit_gradient_launch(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    of_rows: tuple[torch.Tensor, ...],
    out: torch.Tensor,
    first: int,
    capability: tuple[int, int],
) -> Launch:
    """`weight` and `out` (n, len(weight)) are those of the slice that starts at token `first`; `of_rows` are log sum, mean and the
    gradients of log-probability and entropy, (n,) float32 each."""
    (n, width), vocabulary = hidden.shape, len(weight)
    chosen = _tile(n, vocabulary, hidden, capability)
    names = ("log_sum_ptr", "mean_ptr", "of_logprob_ptr", "of_entropy_ptr")
    return tiled_launch(
        _logit_gradient,
        chosen,
        size=(n, vocabulary),
        batch=1,
        arguments={
            "hidden_ptr": hidden,
            "weight_ptr": weight,
            "targets_ptr": targets,
            **dict(zip(names, of_rows, strict=True)),
            "out_ptr": out,
            "n": n,
            "vocabulary": vocabulary,
            "width": width,
            "first": first,
        },
        constants={},
        dtype=hidden.dtype,
        flops=2 * n * vocabulary * width,
    )


def _tile(n: int, vocabulary: int, hidden: torch.Tensor, capability: tuple[int, int]) -> Tile:
    return tile(n, vocabulary, hidden.element_size(), capability, wide_loads=hidden.shape[1] % 16 == 0)
