"""Log-probability of a token and entropy of the distribution straight from hidden states: logits are never in memory as a whole.

A language model's last layer makes tokens x vocabulary logits only to read a few numbers off each row. Here every block of
logits becomes four running numbers of its row (largest, sum of exponentials, that sum weighted by logits, the token's own logit)
and is forgotten. Backward computes a slice of the vocabulary again, turns it into its gradient, multiplies it with both operands
and goes on to the next slice.

With p the softmax of logits l: log-probability l_t - log sum exp l, entropy H = log sum exp l - sum p l, and
    d logprob / d l_j = [j = t] - p_j,    d H / d l_j = -p_j (l_j - sum p l).
"""

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from torch.nn import functional

from costmodels.errors import Problem
from real.kernels.checking import FLOATS, HALVES, dtype_problem, equal_problem, refuse
from real.kernels.paths import Path, path_of

SLICES = 64
"""assumption: a 64th of the vocabulary at a time keeps float32 logits, their exponentials and their gradient together below a
tenth of all logits, and leaves products long enough to fill a GPU."""

LEAST = 128
"""Tokens of the vocabulary in a slice, at least: a tile."""


def linear_logprob(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, path: Path | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of `targets` (n,) and entropy under softmax(hidden weight^T), float32 (n,) each; both have gradients.

    `hidden` (n, width) and `weight` (vocabulary, width) are float32, float16 or bfloat16, both of one; `targets` int64 in
    [0, vocabulary). Sums are float32; the gradient of a slice of logits is rounded to the operands' dtype, so float16 needs
    a loss scale as usual. Beyond operands and their gradients it takes less than a tenth of the logits' memory where there are some
    hundred tokens and the vocabulary is 50 times `width` or more (sums of the gradient of `hidden` are float32). `path` is
    `logprob_path(hidden)` if None. Raises InputError where shapes or dtypes do not fit.
    """
    _check(hidden, weight, targets, path)
    logprob, entropy = _LinearLogprob.apply(hidden, weight, targets, path or logprob_path(hidden))
    return logprob, entropy


def logprob_path(hidden: torch.Tensor) -> Path:
    """ "triton" for halves where Triton has products; float32, whose products tensor cores would cut short, goes by torch."""
    return path_of(hidden.device) if hidden.dtype in HALVES else "torch"


def reference_linear_logprob(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in plain torch, with all logits in memory; products in float32."""
    logs = functional.log_softmax(hidden.float() @ weight.float().mT, dim=-1)
    return logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, path: Path
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
        statistics = _triton_statistics if path == "triton" else _torch_statistics
        log_sum, mean, own = together(statistics(hidden, weight, targets))
        ctx.save_for_backward(hidden, weight, targets, log_sum, mean)
        ctx.path = path
        return own - log_sum, log_sum - mean

    @staticmethod
    def backward(
        ctx: Any, of_logprob: torch.Tensor, of_entropy: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        hidden, weight, targets, log_sum, mean = ctx.saved_tensors
        of_rows = (log_sum, mean, of_logprob.contiguous(), of_entropy.contiguous())
        gradient = _triton_gradient if ctx.path == "triton" else _torch_gradient
        wanted = ctx.needs_input_grad
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wanted[0] else None
        of_weight = torch.empty_like(weight) if wanted[1] else None
        if len(hidden) == 0 and of_weight is not None:
            of_weight.zero_()
        for part in slices(len(weight), pieces_of(hidden)) if len(hidden) else ():
            of_logits = gradient(hidden, weight[part], targets, of_rows, part.start)
            if of_hidden is not None:
                _add_product(of_hidden, of_logits, weight[part], ctx.path)
            if of_weight is not None:
                _product(of_weight[part], of_logits.mT, hidden, ctx.path)
            del of_logits  # before the next slice is made
        return None if of_hidden is None else of_hidden.to(hidden.dtype), of_weight, None, None


def pieces_of(hidden: torch.Tensor) -> int:
    """Slices of the vocabulary; finer ones for halves on a CPU, of whose operands there are copies in float32 meanwhile."""
    return SLICES if hidden.is_cuda or hidden.dtype not in HALVES else 3 * SLICES


def slices(vocabulary: int, pieces: int = SLICES) -> Iterator[slice]:
    """Parts of the vocabulary, one in memory at a time."""
    size = max(LEAST, ceil(vocabulary / (pieces * LEAST)) * LEAST)
    for first in range(0, vocabulary, size):
        yield slice(first, min(first + size, vocabulary))


def together(parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log of the sum, mean of the logits under softmax and own logit (n,), from statistics (parts, 4, n).

    Parts of the vocabulary are added in their order, so results do not depend on which program ended first.
    """
    largest, total, weighted, own = parts.unbind(1)
    top = largest.amax(0)
    kept = (largest - top).exp()
    whole = (total * kept).sum(0)
    return top + whole.log(), (weighted * kept).sum(0) / whole, own.sum(0)


def _triton_statistics(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from real.kernels.linear_logprob_kernels import parts_of, statistics_launch
    from real.kernels.tiles import capability_of

    capability = capability_of(hidden.device)
    parts = parts_of(len(hidden), len(weight), hidden, capability) if len(hidden) else 1
    out = torch.empty(parts, 4, len(hidden), dtype=torch.float32, device=hidden.device)
    if len(hidden):
        statistics_launch(hidden, weight, targets, out, capability).run()
    return out


def _torch_statistics(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each slice of the vocabulary."""
    found = []
    for part in slices(len(weight), pieces_of(hidden)):
        logits = _logits(hidden, weight[part])
        at = targets - part.start
        inside = (at >= 0) & (at < logits.shape[1])
        own = logits.gather(1, at.clamp(0, logits.shape[1] - 1)[:, None])[:, 0] * inside
        largest = logits.amax(1)
        grown = (logits - largest[:, None]).exp_()
        total = grown.sum(1)
        found.append(torch.stack([largest, total, grown.mul_(logits).sum(1), own]))
        del logits, grown
    return torch.stack(found)


def _triton_gradient(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, of_rows: tuple[torch.Tensor, ...], first: int
) -> torch.Tensor:
    from real.kernels.linear_logprob_kernels import logit_gradient_launch
    from real.kernels.tiles import capability_of

    out = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)
    logit_gradient_launch(hidden, weight, targets, of_rows, out, first, capability_of(hidden.device)).run()
    return out


def _torch_gradient(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, of_rows: tuple[torch.Tensor, ...], first: int
) -> torch.Tensor:
    log_sum, mean, of_logprob, of_entropy = (x[:, None] for x in of_rows)
    logits = _logits(hidden, weight)
    share = (logits - log_sum).exp_()
    gradient = share.mul_(logits.sub_(mean).mul_(of_entropy).add_(of_logprob)).neg_()
    at = targets - first
    inside = (at >= 0) & (at < gradient.shape[1])
    gradient.scatter_add_(1, at.clamp(0, gradient.shape[1] - 1)[:, None], of_logprob * inside[:, None])
    return gradient.to(hidden.dtype)


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Float32; on CUDA the product is in the operands' dtype, on the CPU in float32, whose products of halves are exact."""
    return (hidden @ weight.mT).float() if hidden.is_cuda else hidden.float() @ weight.float().mT


def _product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, path: Path) -> None:
    """`out` = a b, with float32 sums."""
    if path == "triton":
        _triton_product(out, a, b)
    elif a.is_cuda or out.dtype == torch.float32:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a.float() @ b.float())


def _triton_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Straight into `out`, unless the sum is made in parts."""
    from real.kernels.gemm import gemm_launch, parts_of
    from real.kernels.half_gemm import half_gemm
    from real.kernels.tiles import capability_of

    capability = capability_of(a.device)
    if parts_of(a[None], b[None], capability) == 1:
        gemm_launch(a[None], b[None], None, None, None, out[None, None], b.dtype, capability).run()
    else:
        out.copy_(half_gemm(a, b, dtype=b.dtype, out_dtype=out.dtype))


def _add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, path: Path) -> None:
    """`out` (float32) += a b, with float32 sums."""
    if path == "triton":
        from real.kernels.half_gemm import half_gemm

        out += half_gemm(a, b, dtype=b.dtype, out_dtype=torch.float32)
    elif a.is_cuda:
        out += a @ b
    else:
        out.addmm_(a.float(), b.float())


def _check(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, path: Path | None) -> None:
    shapes = (tuple(hidden.shape), tuple(weight.shape), tuple(targets.shape))
    fits = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1] and len(weight) > 0
    problems = [
        dtype_problem("hidden", hidden, HALVES if path == "triton" else FLOATS),
        equal_problem("weight", weight.dtype, hidden.dtype, "One dtype for both: sums are float32 anyway."),
        dtype_problem("targets", targets, (torch.int64,)),
    ]
    if not fits or targets.shape != hidden.shape[:1]:
        wanted = "(n, width), (vocabulary, width) and (n,)"
        problems.append(Problem("hidden, weight, targets", ", ".join(map(str, shapes)), wanted))
    refuse("linear_logprob", problems)
