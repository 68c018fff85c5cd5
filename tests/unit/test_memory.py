"""Memory of model states, activations and KV caches against the equations and figures that were published."""

import pytest

from costmodels.memory import head_activation_B, kv_cache_B, layer_activation_B, model_states
from costmodels.model_config import named
from costmodels.transformer_kernels import Slice

GPT3 = named("gpt3_175b")
SBH = 2048 * GPT3.hidden
SCORES = 5 * GPT3.heads * 2048 / GPT3.hidden


def gpt(tp: int = 1, sequence_parallel: bool = False) -> Slice:
    return Slice(
        sequences=1, seq_len=2048, precision="float16", tp=tp, sequence_parallel=sequence_parallel, attention="unfused",
        dropout=True, vocab_parallel=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "recompute", "published"),
    [
        (gpt(), "none", 34 + SCORES),  # equation 1
        (gpt(8), "none", 10 + 24 / 8 + SCORES / 8),  # equation 2
        (gpt(8, True), "none", (34 + SCORES) / 8),  # equation 4
        (gpt(8, True), "selective", 34 / 8),  # equation 6
        (gpt(8), "full", 2),
    ],
)
def test_activations_of_a_layer_are_korthikantis(part: Slice, recompute: str, published: float) -> None:
    """Korthikanti et al. 2022, section 4, in units of sbh."""
    assert layer_activation_B(GPT3, part, recompute) == pytest.approx(published * SBH)


def test_activations_of_the_head_are_korthikantis() -> None:
    """4sbh/t (1 + v/h) with sequence parallelism (section 4.3): half of it input and output of the norm, the rest logits."""
    assert head_activation_B(GPT3, gpt(8, True)) == pytest.approx(4 * SBH / 8 * (1 + GPT3.vocab / GPT3.hidden))


def test_llama_keeps_less_with_selective_recomputation() -> None:
    """Flash attention keeps no scores; what selective recomputation drops are outputs of two norms and of the activation."""
    shape = named("llama3_8b")
    part = Slice(sequences=1, seq_len=8192, precision="bfloat16")
    saved = layer_activation_B(shape, part, "none") - layer_activation_B(shape, part, "selective")
    assert saved == 8192 * 2 * (2 * shape.hidden + shape.ffn)


@pytest.mark.parametrize(("zero", "published_GB"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_states_are_zeros(zero: int, published_GB: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters over 64 ranks."""
    states = model_states(7.5e9, "float16", master_weights=True, zero=zero, shards=64)
    assert (states.weights + states.gradients + states.optimizer) / 1e9 == pytest.approx(published_GB, rel=0.01)


def test_bfloat16_with_master_weights_sums_gradients_in_float32() -> None:
    states = model_states(1e9, "bfloat16", master_weights=True, zero=0, shards=1)
    assert (states.weights, states.gradients, states.optimizer) == (2e9, 4e9, 12e9)
    plain = model_states(1e9, "float32", master_weights=True, zero=0, shards=1)
    assert (plain.weights, plain.gradients, plain.optimizer) == (4e9, 4e9, 8e9)


def test_kv_cache_of_a_token() -> None:
    """Llama 3 70B: 80 layers, 8 heads of 128, keys and values, 16 bits: 320 KiB. GPT-3: 4.5 MiB."""
    assert kv_cache_B(named("llama3_70b"), 1, "bfloat16") == 320 * 1024
    assert kv_cache_B(GPT3, 1, "float16") == 4.5 * 1024**2
    assert kv_cache_B(named("llama3_70b"), 10, "bfloat16", tp=16) == 10 * 320 * 1024 / 8
