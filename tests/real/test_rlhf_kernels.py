"""Kernels of RLHF beside plain torch: values, gradients, odd shapes, and the memory that the fused log-probability takes.

Triton interprets (tests/conftest.py), or with TRITON_INTERPRET=0 runs on a GPU. The interpreter cuts float32 to bfloat16 where
hardware rounds, so gradients in bfloat16 are compared within a unit of its last place.
"""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from costmodels.errors import InputError

knobs = pytest.importorskip("triton").knobs

from real.kernels import gae as gae_module  # noqa: E402
from real.kernels.gae import gae, reference_gae  # noqa: E402
from real.kernels.grouped_advantage import grouped_advantage, reference_grouped_advantage  # noqa: E402
from real.kernels.launching import Launch  # noqa: E402
from real.kernels.linear_logprob import (  # noqa: E402
    linear_logprob,
    logprob_path,
    reference_linear_logprob,
    slices,
)
from real.kernels.linear_logprob_kernels import parts_of  # noqa: E402
from real.kernels.paths import Path as KernelPath  # noqa: E402
from real.precision.allocations import peak_B  # noqa: E402

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("compiled kernels need a CUDA device; TRITON_INTERPRET=1 needs none", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(1, 1, 1), (1, 17, 129), (17, 33, 300), (130, 48, 257), (3, 129, 1000)]  # tokens, width, vocabulary
PATHS: list[tuple[KernelPath, torch.dtype]] = [
    ("triton", torch.float16),
    ("triton", torch.bfloat16),
    ("torch", torch.float32),
    ("torch", torch.bfloat16),
]
LAST_PLACE = {torch.float32: 2.0**-18, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def operands(
    n: int, width: int, vocabulary: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers that bfloat16 holds exactly; logits of up to about 10."""
    hidden = (2 * torch.randn(n, width, device=DEVICE) / width**0.5).bfloat16().to(dtype).requires_grad_()
    weight = (2 * torch.randn(vocabulary, width, device=DEVICE)).bfloat16().to(dtype).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (n,), device=DEVICE)


def gradients(outputs: tuple[torch.Tensor, torch.Tensor], inputs: list[torch.Tensor], n: int) -> list[torch.Tensor]:
    """Of a sum in which every row's log-probability and entropy have a weight of their own."""
    generator = torch.Generator().manual_seed(1)
    of_logprob, of_entropy = (torch.randn(n, generator=generator).to(DEVICE) for _ in range(2))
    return list(torch.autograd.grad((outputs[0] * of_logprob + outputs[1] * of_entropy).sum(), inputs))


def near(found: torch.Tensor, wanted: torch.Tensor, unit: float) -> None:
    assert found.shape == wanted.shape
    scale = max(wanted.abs().max().item(), 1e-3)
    assert (found.float() - wanted.float()).abs().max().item() <= unit * scale


# --- fused linear, log-probability and entropy


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("path", "dtype"), PATHS)
def test_logprob_and_entropy_with_gradients(path: KernelPath, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    hidden, weight, targets = operands(*shape, dtype)
    found = linear_logprob(hidden, weight, targets, path=path)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logs = (exact[0] @ exact[1].mT).log_softmax(-1)
    wanted = logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        near(mine, theirs, 2.0**-17)
    for mine, theirs in zip(
        gradients(found, [hidden, weight], shape[0]), gradients(wanted, exact, shape[0]), strict=True
    ):
        assert mine.dtype == dtype
        near(mine, theirs, LAST_PLACE[dtype])


def test_reference_is_what_the_definition_says() -> None:
    hidden, weight, targets = operands(7, 5, 11, torch.float32)
    logprob, entropy = reference_linear_logprob(hidden, weight, targets)
    p = torch.softmax(hidden.double() @ weight.double().mT, -1)
    assert torch.allclose(logprob.double(), p[torch.arange(7), targets].log(), atol=1e-5)
    assert torch.allclose(entropy.double(), torch.special.entr(p).sum(-1), atol=1e-5)


def test_logits_far_from_zero_neither_overflow_nor_cancel() -> None:
    hidden = torch.full((2, 16), 100.0, device=DEVICE)
    weight = torch.zeros(300, 16, device=DEVICE)
    weight[3], weight[250] = 10.0, 10.0  # two logits of 16,000
    targets = torch.tensor([3, 7], device=DEVICE)
    for path, dtype in PATHS:
        logprob, entropy = linear_logprob(hidden.to(dtype), weight.to(dtype), targets, path=path)
        assert torch.allclose(logprob, torch.tensor([-0.6931, -16000.6931], device=DEVICE), atol=2e-3)
        assert torch.allclose(entropy, torch.tensor(0.6931, device=DEVICE), atol=2e-3)


@pytest.mark.parametrize(("path", "dtype"), PATHS)
def test_views_frozen_operands_and_no_tokens(path: KernelPath, dtype: torch.dtype) -> None:
    hidden, weight, targets = operands(9, 40, 130, dtype)
    found = linear_logprob(hidden[::2], weight.detach(), targets[::2], path=path)
    near(found[0], linear_logprob(hidden, weight, targets, path=path)[0][::2], 2.0**-20)
    (of_hidden,) = gradients(found, [hidden], 5)
    assert not of_hidden[1::2].any()
    none = linear_logprob(hidden[:0], weight, targets[:0], path=path)
    assert none[0].shape == none[1].shape == (0,)
    assert not torch.autograd.grad(none[0].sum(), weight)[0].any()


def test_the_vocabulary_is_cut_into_parts_that_cover_it() -> None:
    for vocabulary in (1, 127, 128, 129, 32000, 49152, 128256):
        parts = list(slices(vocabulary))
        assert parts[0].start == 0
        assert parts[-1].stop == vocabulary
        assert all(a.stop == b.start for a, b in pairwise(parts))
        assert max(p.stop - p.start for p in parts) <= max(vocabulary / 64 + 128, 128)
    hidden = torch.empty(17, 64, dtype=torch.float16, device="meta")
    assert parts_of(17, 49152, hidden, (8, 0)) > 100  # few tokens, many parts: a GPU is full
    assert parts_of(17, 64, hidden, (8, 0)) == 1


@pytest.mark.parametrize(("path", "dtype"), PATHS)
def test_peak_memory_is_below_a_tenth_of_the_logits(
    path: KernelPath, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2's vocabulary and width; beyond operands and their gradients, forward and backward together."""
    if DEVICE == "cpu":  # interpreted kernels take minutes; what they write into is there without them
        monkeypatch.setattr(Launch, "run", lambda launch: None)
    n, width, vocabulary = 256, 576, 49152
    hidden, weight, targets = operands(n, width, vocabulary, dtype)

    def run() -> None:
        logprob, entropy = linear_logprob(hidden, weight, targets, path=path)
        (logprob.mean() - 0.01 * entropy.mean()).backward()

    logits_B = n * vocabulary * hidden.element_size()
    gradients_B = (hidden.numel() + weight.numel()) * hidden.element_size()
    assert most_B(run) - gradients_B < logits_B / 10
    assert hidden.grad is not None and weight.grad is not None


def test_peak_memory_of_the_reference_is_above_the_logits() -> None:
    """So the count sees logits where there are any."""
    hidden, weight, targets = operands(64, 64, 49152, torch.float32)
    plain_B = most_B(lambda: sum(x.mean() for x in reference_linear_logprob(hidden, weight, targets)).backward())
    assert plain_B > 64 * 49152 * 4


def most_B(run) -> float:  # type: ignore[no-untyped-def]
    """Bytes of tensors above those that stand before."""
    if DEVICE == "cpu":
        return peak_B(run, [])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def test_paths_are_chosen_by_dtype_and_device() -> None:
    assert logprob_path(torch.empty(1, 1)) == "torch"
    assert logprob_path(torch.empty(1, 1, dtype=torch.bfloat16)) == "torch"


def test_operands_that_do_not_fit_are_refused_with_everything_wrong() -> None:
    with pytest.raises(InputError) as caught:
        linear_logprob(torch.empty(3, 4), torch.empty(5, 6, dtype=torch.float16), torch.empty(2), path="triton")
    assert [p.field for p in caught.value.problems] == ["hidden", "weight", "targets", "hidden, weight, targets"]


# --- generalised advantage estimation


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 17), (3, 32), (2, 33), (2, 75)])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
def test_gae_scan(shape: tuple[int, int], share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every step, with holes anywhere (blocks begin and end in them), and with none that counts; blocks of 32 steps."""
    monkeypatch.setattr(gae_module, "STEPS", 32)
    mask = torch.rand(shape, device=DEVICE) < share
    for gamma, lam in ((1.0, 1.0), (0.99, 0.95), (0.9, 0.0)):
        agrees(mask, gamma, lam)


def test_gae_scan_in_blocks_of_their_usual_size() -> None:
    agrees(torch.rand((1, 1100), device=DEVICE) < 0.9, 0.99, 0.95)


def agrees(mask: torch.Tensor, gamma: float, lam: float) -> None:
    rewards, values = torch.randn(mask.shape, device=DEVICE), torch.randn(mask.shape, device=DEVICE)
    found = gae(rewards, values, mask, gamma=gamma, lam=lam)
    wanted = reference_gae(rewards, values, mask, gamma=gamma, lam=lam)
    for mine, theirs in zip(found, wanted, strict=True):
        near(mine, theirs, 2.0**-16)
        assert not mine[~mask].any()


def test_gae_is_the_sum_of_the_paper() -> None:
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}; holes are as if they were not there."""
    rewards, values = torch.randn(1, 9).double(), torch.randn(1, 9).double()
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 0, 1]]).bool()
    r, v = rewards[mask].tolist(), [*values[mask].tolist(), 0.0]
    delta = [r[t] + 0.9 * v[t + 1] - v[t] for t in range(len(r))]
    wanted = [sum((0.9 * 0.7) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(r))]
    for run in (gae, reference_gae):
        advantages, returns = run(
            rewards.float().to(DEVICE), values.float().to(DEVICE), mask.to(DEVICE), gamma=0.9, lam=0.7
        )
        assert advantages[mask].tolist() == pytest.approx(wanted, abs=1e-5)
        assert returns[mask].tolist() == pytest.approx([a + b for a, b in zip(wanted, v, strict=False)], abs=1e-5)


def test_gae_takes_views_and_refuses_what_does_not_fit() -> None:
    rewards, values = torch.randn(6, 5, device=DEVICE).mT, torch.randn(5, 12, device=DEVICE)[:, ::2]
    mask = torch.ones(5, 6, dtype=torch.bool, device=DEVICE)
    near(gae(rewards, values, mask)[0], reference_gae(rewards, values, mask)[0], 2.0**-16)
    with pytest.raises(InputError) as caught:
        gae(rewards, values.double(), mask[:4].float())
    assert [p.field for p in caught.value.problems] == ["values", "mask", "mask"]


# --- advantages within a group


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (5, 2), (33, 5), (3, 130), (300, 8), (1, 4096)])
@pytest.mark.parametrize("scaled", [True, False])
def test_grouped_advantage(shape: tuple[int, int], scaled: bool) -> None:
    rewards = torch.randn(shape, device=DEVICE) + 3
    found = grouped_advantage(rewards, scaled=scaled)
    near(found, reference_grouped_advantage(rewards, scaled=scaled), 2.0**-16)
    assert found.sum(1).abs().max() < 1e-3 * shape[1]
    if scaled and shape[1] > 1:
        assert torch.allclose(found.std(1), torch.ones(shape[0], device=DEVICE), atol=1e-3)


def test_answers_that_are_equal_have_no_advantage() -> None:
    assert not grouped_advantage(torch.full((4, 6), 0.3, device=DEVICE)).abs().max() > 1e-1
    assert not grouped_advantage(torch.ones(4, 6, device=DEVICE)).any()
    with pytest.raises(InputError, match="at most 4096"):
        grouped_advantage(torch.ones(1, 4097, device=DEVICE))


# --- compiled without a GPU


@pytest.mark.slow
def test_kernels_compile_without_spills(tmp_path: Path) -> None:
    """In a process of its own: what is interpreted here is not compiled."""
    script = """
from real.kernels.compile_ahead import CAPABILITIES, compiled
from real.kernels.rlhf_cases import rlhf_cases
for name, case in rlhf_cases():
    for capability in CAPABILITIES:
        print(name, capability, compiled(name, case(capability), capability).problems, sep=" | ")
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert len(rows) == 3 * 18
    assert [row for row in rows if not row.endswith("[]")] == []
