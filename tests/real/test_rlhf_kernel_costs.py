"""FLOPs and bytes of the kernels of RLHF: the cost model counts what launches do."""

import pytest
import torch

from costmodels.kernels import flops, kernel, nbytes

pytest.importorskip("triton")

from real.kernels.gae import gae_launch
from real.kernels.grouped_advantage import grouped_advantage_launch
from real.kernels.linear_logprob_kernels import logit_gradient_launch, statistics_launch

A100 = (8, 0)


def test_the_cost_model_counts_what_launches_do() -> None:
    """Forward, and backward as if its slice were the vocabulary: the gradient's launch and one product with either operand."""
    n, width, vocabulary = 129, 48, 1000
    hidden, weight = meta(n, width), meta(vocabulary, width)
    targets, row = meta(n, dtype=torch.int64), meta(n, dtype=torch.float32)
    cost = {"rows": n, "cols": width, "vocab": vocabulary}
    forward = statistics_launch(hidden, weight, targets, meta(1, 4, n, dtype=torch.float32), A100)
    assert counted("linear_logprob", "bfloat16", **cost) == (forward.flops, forward.nbytes)
    of_logits = meta(n, vocabulary)
    gradient = logit_gradient_launch(hidden, weight, targets, (row,) * 4, of_logits, 0, A100)
    products = [
        kernel("gemm", "bfloat16", m=n, n=width, k=vocabulary),
        kernel("gemm", "bfloat16", m=vocabulary, n=width, k=n),
    ]
    flop, moved_B = (gradient.flops + sum(map(flops, products)), gradient.nbytes + sum(map(nbytes, products)))
    assert counted("linear_logprob_backward", "bfloat16", **cost) == (flop, moved_B)


def test_the_cost_model_counts_what_advantages_move() -> None:
    numbers, mask = meta(33, 17, dtype=torch.float32), meta(33, 17, dtype=torch.int8)
    constants = meta(2, dtype=torch.float32)
    scan = gae_launch(numbers, numbers, mask, numbers, numbers, constants)
    assert counted("gae", "float32", rows=33, cols=17) == (scan.flops, scan.nbytes - constants.nbytes)
    grouped = grouped_advantage_launch(numbers, numbers, constants, scaled=True)
    assert counted("grouped_advantage", "float32", rows=33, cols=17) == (
        grouped.flops,
        grouped.nbytes - constants.nbytes,
    )


def counted(name: str, dtype: str, **shape: int) -> tuple[float, float]:
    made = kernel(name, dtype, **shape)
    return flops(made), nbytes(made)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
