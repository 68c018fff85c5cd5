"""FLOPs and bytes of kernels, worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.kernels import NAMES, attended_pairs, flops, kernel, nbytes

HEADS = {"batch": 1, "q_len": 4, "kv_len": 4, "heads": 2, "kv_heads": 1, "head_dim": 8, "causal": 0}
BY_HAND = [
    (kernel("gemm", "bfloat16", m=4, n=5, k=6), 2 * 4 * 5 * 6, 2 * (24 + 30 + 20)),
    (kernel("gemm", "float32", batch=3, m=4, n=5, k=6, count=2), 2 * 3 * 240, 2 * 3 * 4 * 74),
    (kernel("attention", "float16", **HEADS), 2 * 2 * 2 * 8 * 16, 2 * (2 * 64 + 2 * 32)),
    (kernel("add", "float32", rows=3, cols=7), 21, 3 * 4 * 21),
    (kernel("silu_mul", "bfloat16", rows=3, cols=7), 6 * 21, 3 * 2 * 21),
    (kernel("adamw", "bfloat16", params=10), 120, 10 * (6 + 16)),
    (kernel("copy", "float32", elements=10), 0, 80),
    (kernel("linear_logprob", "bfloat16", rows=3, cols=5, vocab=7), 2 * 105, 2 * (15 + 35) + 3 * (8 + 16)),
    (kernel("linear_logprob_backward", "bfloat16", rows=3, cols=5, vocab=7), 6 * 105, 6 * (15 + 35 + 21) + 3 * (8 + 16)),
    (kernel("gae", "float32", rows=3, cols=7), 6 * 21, 17 * 21),
    (kernel("grouped_advantage", "float32", rows=3, cols=7), 6 * 21, 8 * 21),
]  # fmt: skip


@pytest.mark.parametrize(("given_kernel", "operations", "moved"), BY_HAND, ids=lambda x: getattr(x, "name", ""))
def test_by_hand(given_kernel: object, operations: float, moved: float) -> None:
    assert flops(given_kernel) == operations  # type: ignore[arg-type]
    assert nbytes(given_kernel) == moved  # type: ignore[arg-type]


@given(st.integers(1, 64), st.integers(1, 64))
def test_causal_pairs_are_counted_one_by_one(q: int, extra: int) -> None:
    kv = q + extra - 1
    counted = sum(1 for i in range(q) for j in range(kv) if j <= i + kv - q)
    assert attended_pairs({"q_len": q, "kv_len": kv, "causal": 1}) == counted
    assert attended_pairs({"q_len": q, "kv_len": kv, "causal": 0}) == q * kv


def test_backward_of_attention_is_two_and_a_half_times_forward() -> None:
    shape = {"batch": 2, "q_len": 128, "kv_len": 128, "heads": 4, "kv_heads": 4, "head_dim": 64, "causal": 1}
    assert flops(kernel("attention_backward", "bfloat16", **shape)) == 2.5 * flops(
        kernel("attention", "bfloat16", **shape)
    )


def test_names_are_those_that_have_bytes() -> None:
    shape = {"rows": 4, "cols": 4, "vocab": 8, "params": 4, "elements": 4, "m": 4, "n": 4, "k": 4}
    shape |= {"batch": 1, "q_len": 4, "kv_len": 4, "heads": 1, "kv_heads": 1, "head_dim": 4, "causal": 0}
    shape |= {
        "channels": 4,
        "height": 4,
        "width": 4,
        "filters": 4,
        "kernel_h": 3,
        "kernel_w": 3,
        "out_h": 4,
        "out_w": 4,
    }
    shape |= {"groups": 1, "data": 1, "inputs": 4, "outputs": 4, "reads": 4, "writes": 4}
    for name in sorted(NAMES):
        assert nbytes(kernel(name, "float32", **shape)) > 0
