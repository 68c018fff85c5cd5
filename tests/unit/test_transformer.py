"""Sizes of models against what their authors published, and the kernels that compute them."""

import json
from pathlib import Path

import pytest

from costmodels import model_config
from costmodels.errors import DataError
from costmodels.kernels import flops
from costmodels.transformer import (
    TransformerShape,
    elements,
    forward_flops_per_token,
    layer_elements,
    parameters,
    sharded_dim,
    total_elements,
    training_flops,
)
from costmodels.transformer_kernels import (
    Kernels,
    Slice,
    Work,
    attention_block,
    attention_core,
    embedding,
    head,
    mlp_block,
)

LLAMA_CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("name", model_config.names())
def test_named_sizes_have_as_many_parameters_as_published(name: str) -> None:
    shape, published = model_config.named(name), model_config.document(name)["parameters"]
    assert total_elements(shape) == pytest.approx(published, rel=0.018)
    assert elements(parameters(shape)) == total_elements(shape)
    assert model_config.document(name)["source"]


def test_parameters_come_in_hugging_faces_order_with_its_names() -> None:
    transformers = pytest.importorskip("transformers")
    shape = model_config.from_config(LLAMA_CONFIG)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_CONFIG))
    assert parameters(shape) == [(name, tuple(p.shape)) for name, p in model.named_parameters()]


def whole(shape: TransformerShape, part: Slice, recompute: str = "none") -> Work:
    layer = attention_block(shape, part, recompute) + attention_core(shape, part, recompute)
    return embedding(shape, part) + (layer + mlp_block(shape, part, recompute)) * shape.layers + head(shape, part)


def products(kernels: Kernels) -> float:
    return sum(flops(k) for k in kernels if k.name.startswith(("gemm", "attention")))


@pytest.mark.parametrize("name", ["llama3_8b", "gpt3_6_7b"])
def test_kernels_do_the_models_flops(name: str) -> None:
    """Backward, flash attention makes its scores again: five products where training FLOPs count four."""
    shape = model_config.named(name)
    part = Slice(sequences=2, seq_len=2048, precision="bfloat16")
    work = whole(shape, part)
    forward = 2 * 2048 * forward_flops_per_token(shape, 2048, causal=True)
    attention = sum(flops(k) for k in work.forward if k.name == "attention")
    assert products(work.forward) == pytest.approx(forward, rel=1e-9)
    assert products(work.backward) == pytest.approx(2 * forward + attention / 2, rel=1e-9)
    assert training_flops(shape, 2048, 2, causal=True) == pytest.approx(3 * forward)


def test_unfused_attention_does_the_flops_of_the_full_square() -> None:
    """Korthikanti et al. 2022, appendix A: 72 B L s h^2 (1 + s/6h + v/12hL) forward and backward."""
    shape = model_config.named("gpt3_175b")
    part = Slice(sequences=1, seq_len=2048, precision="float16", attention="unfused")
    work = whole(shape, part)
    b, s, h, layers, v = 1, 2048, shape.hidden, shape.layers, shape.vocab
    published = 72 * b * layers * s * h**2 * (1 + s / (6 * h) + v / (12 * h * layers))
    assert products(work.forward + work.backward) == pytest.approx(published, rel=1e-9)
    assert training_flops(shape, s, b) == pytest.approx(published)


@pytest.mark.parametrize("exchange", ["ring", "all_gather"])
@pytest.mark.parametrize("cp", [2, 8])
def test_context_parallel_ranks_share_the_triangle(exchange: str, cp: int) -> None:
    shape = model_config.named("llama3_8b")
    one = attention_core(shape, Slice(sequences=1, seq_len=8192, precision="bfloat16"), "none")
    part = Slice(sequences=1, seq_len=8192, precision="bfloat16", cp=cp, context_exchange=exchange)
    share = attention_core(shape, part, "none")
    assert products(share.forward) == pytest.approx(products(one.forward) / cp, rel=2e-3)


def test_tensor_parallel_ranks_share_the_products() -> None:
    shape = model_config.named("llama3_8b")
    single = Slice(sequences=1, seq_len=2048, precision="bfloat16")
    split = Slice(sequences=1, seq_len=2048, precision="bfloat16", tp=8, sequence_parallel=True, vocab_parallel=True)
    for way in ("forward", "backward"):
        assert products(getattr(whole(shape, split), way)) == pytest.approx(
            products(getattr(whole(shape, single), way)) / 8, rel=1e-3
        )


def test_full_recomputation_runs_the_forward_pass_again() -> None:
    shape = model_config.named("llama3_8b")
    part = Slice(sequences=1, seq_len=2048, precision="bfloat16")
    layer, again = (attention_core(shape, part, m) + mlp_block(shape, part, m) for m in ("none", "full"))
    extra = sum(flops(k) for k in again.backward) - sum(flops(k) for k in layer.backward)
    assert extra == pytest.approx(sum(flops(k) for k in layer.forward))


def test_fused_and_separate_projections_do_the_same_work() -> None:
    shape = model_config.named("llama3_8b")
    fused, separate = (
        mlp_block(shape, Slice(sequences=1, seq_len=64, precision="float32", fused_projections=f), "none")
        for f in (True, False)
    )
    assert products(fused.backward) == products(separate.backward)
    assert len(separate.forward) == len(fused.forward) + 1


def test_fp8_multiplies_in_fp8_and_does_everything_else_in_bfloat16() -> None:
    shape = model_config.named("llama3_8b")
    block = mlp_block(shape, Slice(sequences=1, seq_len=64, precision="fp8"), "none")
    assert {k.dtype for k in block.forward if k.name == "gemm"} == {"fp8"}
    assert {k.dtype for k in block.forward if k.name != "gemm"} == {"bfloat16"}


def test_megatron_splits_layers_by_columns_then_rows() -> None:
    at = "model.layers.3"
    assert sharded_dim(f"{at}.self_attn.q_proj.weight") == 0
    assert sharded_dim(f"{at}.mlp.down_proj.weight") == 1
    assert sharded_dim(f"{at}.mlp.down_proj.bias") is None
    assert sharded_dim(f"{at}.input_layernorm.weight") is None


def test_a_layer_of_llama_405b() -> None:
    """Queries and output 16384 x 16384, keys and values 16384 x 1024, three matrices of 16384 x 53248, two norms."""
    assert layer_elements(model_config.named("llama3_405b")) == 3_187_703_808


def test_config_json_of_llama(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_CONFIG, "tie_word_embeddings": True}))
    shape = model_config.load(tmp_path)
    assert (shape.layers, shape.kv_heads, shape.head_dim, shape.tied_embeddings, shape.gated) == (2, 2, 16, True, True)


def test_config_json_of_gpt2_and_gpt_neox() -> None:
    gpt2 = model_config.from_config(
        {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "vocab_size": 50257}
    )
    assert (gpt2.ffn, gpt2.norm, gpt2.learned_positions, total_elements(gpt2)) == (3072, "layernorm", True, 124_439_808)
    neox = model_config.from_config({**LLAMA_CONFIG, "model_type": "gpt_neox"})
    assert (neox.gated, neox.kv_heads, neox.learned_positions) == (False, 4, False)


def test_everything_wrong_with_a_config_is_said_at_once() -> None:
    broken = {**LLAMA_CONFIG, "hidden_size": "wide", "num_hidden_layers": 0}
    del broken["vocab_size"]
    with pytest.raises(DataError) as error:
        model_config.from_config(broken)
    assert {p.field for p in error.value.problems} == {
        "model.hidden_size",
        "model.num_hidden_layers",
        "model.vocab_size",
    }


@pytest.mark.parametrize("config", [{"model_type": "mixtral", "num_local_experts": 8}, {"model_type": "bert"}, {}])
def test_other_families_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"model\.model_type"):
        model_config.from_config(config)


def test_an_unknown_name_comes_with_close_ones() -> None:
    with pytest.raises(DataError, match=r"Did you mean .*llama3_70b"):
        model_config.named("lama3-70b")


@pytest.mark.parametrize("text", ["", "[]", "{", "nothing"])
def test_a_broken_file_is_said_to_be_broken(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    if text != "nothing":
        path.write_text(text)
    with pytest.raises(DataError, match="model"):
        model_config.load(path)
