"""Kernels of a mixture of experts beside their references: odd shapes, an expert without rows, one with all, and gradients.

Runs in Triton's interpreter, which tests/conftest.py asks for; with TRITON_INTERPRET=0 on a GPU, compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from costmodels.errors import InputError

knobs = pytest.importorskip("triton").knobs

from real.kernels.grouped_gemm import grouped_gemm, reference_grouped_gemm  # noqa: E402
from real.kernels.token_permutation import (  # noqa: E402
    combine,
    order_of,
    permute,
    reference_combine,
    reference_permute,
)
from real.kernels.topk_gating import reference_topk_gating, topk_gating  # noqa: E402

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("compiled kernels need a CUDA device; TRITON_INTERPRET=1 needs none", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random, and exact in bfloat16."""
    return torch.randn(shape, device=DEVICE).bfloat16().to(dtype)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    width = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[found.dtype]
    torch.testing.assert_close(found, wanted, rtol=width, atol=width)


@pytest.mark.parametrize(("rows", "experts", "k"), [(1, 1, 1), (5, 3, 3), (33, 17, 2), (70, 8, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gating(rows: int, experts: int, k: int, dtype: torch.dtype) -> None:
    scores = numbers(rows, experts, dtype=dtype).requires_grad_()
    again = scores.detach().clone().requires_grad_()
    weight, chosen = topk_gating(scores, k)
    wanted_weight, wanted_chosen = reference_topk_gating(again, k)
    assert torch.equal(chosen, wanted_chosen)
    close(weight, wanted_weight)
    assert weight.sum(dim=1).tolist() == pytest.approx([1.0] * rows)
    grad = torch.randn_like(weight)
    weight.backward(grad)
    wanted_weight.backward(grad)
    assert scores.grad is not None and again.grad is not None
    close(scores.grad, again.grad)


def test_of_equal_scores_the_first_expert_comes_first() -> None:
    weight, chosen = topk_gating(torch.zeros(3, 5, device=DEVICE), 2)
    assert chosen.tolist() == [[0, 1]] * 3
    assert torch.equal(weight, torch.full_like(weight, 0.5))


def test_no_rows_at_all() -> None:
    weight, chosen = topk_gating(torch.zeros(0, 5, device=DEVICE), 2)
    assert weight.shape == chosen.shape == (0, 2)
    order = order_of(chosen, 5)
    x = torch.zeros(0, 7, device=DEVICE)
    assert combine(permute(x, order), weight, order).shape == (0, 7)
    assert grouped_gemm(x, torch.zeros(5, 7, 3, device=DEVICE), order.offset).shape == (0, 3)


@pytest.mark.parametrize(("samples", "k", "width"), [(1, 1, 1), (9, 2, 33), (31, 3, 130)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_permutation_and_back(samples: int, k: int, width: int, dtype: torch.dtype) -> None:
    chosen = torch.rand(samples, 6, device=DEVICE).argsort(dim=1)[:, :k]
    order = order_of(chosen, 6)
    x, weight = (
        numbers(samples, width, dtype=dtype).requires_grad_(),
        torch.rand(samples, k, device=DEVICE).requires_grad_(),
    )
    x2, weight2 = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    rows, wanted_rows = permute(x, order), reference_permute(x2, order)
    assert torch.equal(rows, wanted_rows)
    assert (
        chosen.flatten().sort().values
        == torch.repeat_interleave(torch.arange(6, device=DEVICE), order.offset.diff().long())
    ).all()
    out, wanted = combine(rows, weight, order), reference_combine(wanted_rows, weight2, order)
    close(out, wanted)
    grad = numbers(samples, width, dtype=dtype)
    out.backward(grad)
    wanted.backward(grad)
    for one, other in ((x, x2), (weight, weight2)):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=3e-2, atol=3e-2 * max(width, 1) ** 0.5)
    if dtype == torch.float32:
        close(x.grad, x2.grad)  # type: ignore[arg-type]


SIZES = {
    "one row": [1],
    "an expert without rows": [5, 0, 17],
    "one with all": [0, 40, 0, 0],
    "many": [33, 1, 64, 16, 0, 65],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("k", "n"), [(1, 1), (17, 33), (64, 70)])
def test_products_of_experts(sizes: list[int], k: int, n: int) -> None:
    offset = torch.tensor([0, *sizes], device=DEVICE).cumsum(0).int()
    for dtype in DTYPES if (k, n) == (17, 33) else (torch.float32,):
        x, w = numbers(sum(sizes), k, dtype=dtype), numbers(len(sizes), k, n, dtype=dtype)
        pairs = [[t.detach().clone().requires_grad_() for t in (x, w)] for _ in range(2)]
        out, wanted = grouped_gemm(*pairs[0], offset), reference_grouped_gemm(*pairs[1], offset)
        torch.testing.assert_close(out, wanted, rtol=2e-2, atol=1e-4 if dtype == torch.float32 else 0.1)
        grad = numbers(sum(sizes), n, dtype=dtype)
        out.backward(grad)
        wanted.backward(grad)
        for one, other in zip(*pairs, strict=True):
            assert one.grad is not None and other.grad is not None
            torch.testing.assert_close(one.grad, other.grad, rtol=2e-2, atol=1e-4 if dtype == torch.float32 else 0.3)


def test_weights_of_any_strides() -> None:
    offset = torch.tensor([0, 4, 9], dtype=torch.int32, device=DEVICE)
    x, w = numbers(9, 12), numbers(2, 20, 12).mT
    torch.testing.assert_close(grouped_gemm(x, w, offset), reference_grouped_gemm(x, w, offset), rtol=1e-4, atol=1e-4)


def test_operands_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="1 to 3, the experts"):
        topk_gating(torch.zeros(2, 3, device=DEVICE), 4)
    offset = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    with pytest.raises(InputError) as caught:
        grouped_gemm(torch.zeros(1, 3, device=DEVICE), torch.zeros(2, 4, 5, device=DEVICE).half(), offset)
    assert [p.field for p in caught.value.problems] == ["w", "w", "offset"]
    order = order_of(torch.zeros(3, 1, dtype=torch.int64, device=DEVICE), 2)
    with pytest.raises(InputError):
        permute(torch.zeros(4, 2, device=DEVICE), order)


@pytest.mark.slow
def test_they_compile_without_spills(tmp_path: Path) -> None:
    script = """
from real.kernels.compile_ahead import CAPABILITIES, compiled
from real.kernels.expert_cases import expert_cases
for name, case in expert_cases():
    for capability in CAPABILITIES:
        print(name, compiled(name, case(capability), capability).problems)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 20
    assert all(line.endswith("[]") for line in lines), done.stdout
