"""Gate of a mixture of experts: the `k` largest scores of each row and a softmax over these, forward and backward."""

from math import ceil
from typing import Any

import torch
import triton
import triton.language as tl

from costmodels.errors import Problem
from real.kernels.checking import FLOATS, dtype_problem, equal_problem, refuse
from real.kernels.launching import Launch

ELEMENTS = 2048
"""assumption: scores of a program; sixteen of each thread of four warps."""


@triton.jit
def _topk_gating(  # type: ignore[no-untyped-def]
    scores_ptr, weight_ptr, chosen_ptr, rows, experts,
    K: tl.constexpr, ROWS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """Largest first; of equal scores the expert with the smaller number. Found twice: for the sum, then for the weights."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    inside = (row < rows)[:, None] & (expert < experts)[None, :]
    at = row[:, None].to(tl.int64) * experts + expert[None, :]
    scores = tl.load(scores_ptr + at, mask=inside, other=float("-inf")).to(tl.float32)
    scores = tl.where((row < rows)[:, None], scores, 0.0)
    top = tl.max(scores, axis=1)
    left, total = scores, tl.zeros([ROWS], dtype=tl.float32)
    for _ in tl.static_range(K):
        largest = tl.max(left, axis=1)
        best = tl.min(tl.where(left == largest[:, None], expert[None, :], EXPERTS), axis=1)
        total += tl.exp(largest - top)
        left = tl.where(expert[None, :] == best[:, None], float("-inf"), left)
    left = scores
    for i in tl.static_range(K):
        largest = tl.max(left, axis=1)
        best = tl.min(tl.where(left == largest[:, None], expert[None, :], EXPERTS), axis=1)
        tl.store(weight_ptr + row.to(tl.int64) * K + i, tl.exp(largest - top) / total, mask=row < rows)
        tl.store(chosen_ptr + row.to(tl.int64) * K + i, best, mask=row < rows)
        left = tl.where(expert[None, :] == best[:, None], float("-inf"), left)


@triton.jit
def _topk_gating_backward(  # type: ignore[no-untyped-def]
    weight_ptr, chosen_ptr, grad_ptr, out_ptr, rows, experts,
    K: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of a softmax over the chosen: w (g - sum w g); `out` holds zeros for the others."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (place < K)[None, :]
    at = row[:, None].to(tl.int64) * K + place[None, :]
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    chosen = tl.load(chosen_ptr + at, mask=inside, other=0)
    found = weight * (grad - tl.sum(weight * grad, axis=1)[:, None])
    tl.store(out_ptr + row[:, None].to(tl.int64) * experts + chosen, found, mask=inside)


def topk_gating_launch(scores: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor) -> Launch:
    """`scores` (rows, experts), `weight` float32 and `chosen` int32 (rows, k); all contiguous."""
    rows, experts = scores.shape
    wide = triton.next_power_of_2(experts)
    block = max(ELEMENTS // wide, 1)
    return Launch(
        kernel=_topk_gating,
        grid=(ceil(rows / block),),
        arguments={"scores_ptr": scores, "weight_ptr": weight, "chosen_ptr": chosen, "rows": rows, "experts": experts},
        constants={"K": weight.shape[1], "ROWS": block, "EXPERTS": wide},
    )


def topk_gating_backward_launch(
    weight: torch.Tensor, chosen: torch.Tensor, grad: torch.Tensor, out: torch.Tensor
) -> Launch:
    """`out` (rows, experts) holds zeros; the others are (rows, k)."""
    (rows, k), experts = weight.shape, out.shape[1]
    wide = triton.next_power_of_2(k)
    block = max(min(ELEMENTS // wide, 128), 1)
    return Launch(
        kernel=_topk_gating_backward,
        grid=(ceil(rows / block),),
        arguments={
            "weight_ptr": weight,
            "chosen_ptr": chosen,
            "grad_ptr": grad,
            "out_ptr": out,
            "rows": rows,
            "experts": experts,
        },
        constants={"K": k, "ROWS": block, "WIDE": wide},
    )


class _Gating(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        weight = scores.new_empty(len(scores), k, dtype=torch.float32)
        chosen = scores.new_empty(len(scores), k, dtype=torch.int32)
        if len(scores):
            topk_gating_launch(scores.contiguous(), weight, chosen).run()
        ctx.save_for_backward(weight, chosen)
        ctx.mark_non_differentiable(chosen)
        ctx.like = scores
        return weight, chosen

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        weight, chosen = ctx.saved_tensors
        out = torch.zeros_like(ctx.like, memory_format=torch.contiguous_format)
        if len(weight):
            topk_gating_backward_launch(weight, chosen, grad.contiguous(), out).run()
        return out, None


def topk_gating(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (rows, k) float32, largest first, and experts (rows, k) int32 from scores (rows, experts).

    Weights of a row are the softmax over its `k` largest scores; of equal scores the smaller expert comes first. Scores are finite,
    and weights are differentiable. Raises InputError for another shape or dtype, or a `k` that is not among the experts.
    """
    refuse("topk_gating", _problems(scores, k))
    weight, chosen = _Gating.apply(scores, k)
    return weight, chosen


def reference_topk_gating(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in torch."""
    order = scores.float().sort(dim=1, descending=True, stable=True)
    return torch.softmax(order.values[:, :k], dim=1), order.indices[:, :k].int()


def _problems(scores: torch.Tensor, k: int) -> list[Problem | None]:
    if scores.dim() != 2:
        return [equal_problem("scores", f"{scores.dim()} axes", "2 axes")]
    fits = 1 <= k <= scores.shape[1]
    return [
        dtype_problem("scores", scores, FLOATS),
        None if fits else Problem("k", str(k), f"1 to {scores.shape[1]}, the experts"),
    ]
