"""Sizes of models against what their authors published."""

import json
from pathlib import Path

import pytest

from costmodels.errors import InputError
from costmodels.kernels import flops
from costmodels.layers import Slice, embed, head, layer
from costmodels.memory import kv_cache_B, layer_activations_B, state_B
from costmodels.transformer import NAMED, from_config, from_fields, model_shape

PUBLISHED = {
    "llama3_8b": 8.03e9,
    "llama3_70b": 70.6e9,
    "llama3_405b": 405e9,
    "llama2_7b": 6.74e9,
    "gpt3_175b": 174.6e9,
    "megatron_22b": 22e9,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    assert NAMED[name].n_parameters == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize("name", ["llama3_8b", "gpt2_124m"])
def test_named_parameters_are_all_of_them(name: str) -> None:
    shape = NAMED[name]
    total = 0
    for _, size in shape.parameters():
        count = 1
        for n in size:
            count *= n
        total += count
    assert total == shape.n_parameters


@pytest.mark.parametrize("name", ["llama3_8b", "llama3_405b", "gpt3_175b"])
def test_kernels_do_the_models_flops(name: str) -> None:
    """Products of a forward and backward pass are the model's FLOPs (PaLM, appendix B) within a few per cent: the rest is
    attention beyond the triangle, norms and activations."""
    shape, s = NAMED[name], Slice(batch=1, seq_len=2048)
    kernels = [k for b in (False, True) for k in layer(shape, s, backward=b)]
    total = shape.layers * sum(flops(k) for k in kernels)
    total += sum(flops(k) for b in (False, True) for k in (*head(shape, s, backward=b), *embed(shape, s, backward=b)))
    assert total == pytest.approx(2048 * shape.flops_per_token(2048), rel=0.04)


def test_tensor_parallel_ranks_share_the_products() -> None:
    shape = NAMED["llama3_8b"]
    whole, part = (
        sum(flops(k) for k in layer(shape, Slice(batch=1, seq_len=512, tp=tp, sequence_parallel=tp > 1)))
        for tp in (1, 4)
    )
    assert part == pytest.approx(whole / 4, rel=1e-3)


def test_hugging_face_config(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = from_config(tmp_path / "config.json")
    assert (shape.layers, shape.kv_heads, shape.head_dim, shape.tied_embeddings) == (2, 2, 16, True)
    assert model_shape("config.json", tmp_path) == shape


def test_all_that_is_wrong_with_a_model_is_said_at_once() -> None:
    with pytest.raises(InputError) as error:
        from_fields({"layers": 0, "hidden": "wide", "ffn": 8, "heads": 2, "vocab": 9, "hiden": 3})
    text = str(error.value)
    assert all(part in text for part in ("workload.model.layers", "workload.model.hidden", "Did you mean hidden?"))
    with pytest.raises(InputError, match="llama3_70b"):
        model_shape("llama3_70", Path())


def test_activations_are_korthikantis() -> None:
    """Korthikanti et al. 2022, table 2 and section 4: s b h (34 + 5 a s / h), with tp and sequence parallelism / t."""
    shape = NAMED["megatron_22b"]
    sbh = 2048 * 4 * shape.hidden
    scores = 5 * shape.heads * 2048 / shape.hidden
    plain = Slice(batch=4, seq_len=2048)
    assert layer_activations_B(shape, plain, "none", flash=False) == pytest.approx(sbh * (34 + scores))
    assert layer_activations_B(shape, plain, "selective", flash=False) == pytest.approx(sbh * 34)
    tensor = Slice(batch=4, seq_len=2048, tp=8)
    assert layer_activations_B(shape, tensor, "none", flash=False) == pytest.approx(sbh * (10 + 24 / 8 + scores / 8))
    sequence = Slice(batch=4, seq_len=2048, tp=8, sequence_parallel=True)
    assert layer_activations_B(shape, sequence, "selective") == pytest.approx(sbh * 34 / 8)
    assert layer_activations_B(shape, plain, "full") == pytest.approx(2 * sbh)


def test_states_are_zeros() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 ranks: 120, 31.4, 16.6, 1.9 GB, gradients in half."""
    totals = [sum(state_B(7.5e9, "bfloat16", "bfloat16", zero=z, shards=64).values()) / 1e9 for z in range(4)]
    assert totals == pytest.approx([120, 31.4, 16.6, 1.9], rel=0.02)


def test_kv_cache_of_a_70b_model() -> None:
    """80 layers x 2 x 8 heads x 128 x 2 B = 327,680 B for each token."""
    assert kv_cache_B(NAMED["llama3_70b"], 1) == 327_680
