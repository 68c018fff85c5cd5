"""The workload: models by name, by sizes and by config.json; what it tells plans."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from costmodels.model_config import named
from simcore.errors import DataError, ScenarioError
from simcore.workloads.transformer_training import Params, TransformerTraining, build

SIZES = {"layers": 2, "hidden": 64, "ffn": 96, "heads": 4, "vocab": 256}


def built(base_dir: Path = Path(), **given: object) -> TransformerTraining:
    return build(Params(seq_len=32, global_batch=8, **given), np.random.default_rng(0), base_dir)


def test_a_model_by_name_by_sizes_and_by_file(tmp_path: Path) -> None:
    assert built(model="llama3_8b").model == named("llama3_8b")
    sizes = built(model=SIZES).model
    assert (sizes.kv_heads, sizes.head_dim, sizes.gated) == (4, 16, True)
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 256, "max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert built(tmp_path, model="config.json").model == sizes


def test_plans_are_told_what_reports_count() -> None:
    told = built(model=SIZES).described()
    assert told["tokens_per_iteration"] == 256
    assert told["model"]["layers"] == 2
    full, causal = (built(model=SIZES, count_flops=c).described()["flops_per_iteration"] for c in ("full", "causal"))
    scores = (
        3 * 2 * 2 * 2 * 64 * 256
    )  # forward and backward, multiply and add, two products, two layers, 64 wide, 256 tokens
    assert full - causal == pytest.approx(scores * (32 - 33 / 2))


def test_the_seed_of_the_data_follows_from_the_scenarios() -> None:
    assert built(model=SIZES).seed == built(model=SIZES).seed


@pytest.mark.parametrize("wrong", [{"kv_heads": 3}, {"heads": 3}, {"layers": 0}, {"hiden": 64}])
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises((ValidationError, ScenarioError), match=next(iter(wrong))):
        built(model={**SIZES, **wrong})


def test_an_unknown_model_is_refused_with_close_names() -> None:
    with pytest.raises(DataError, match="llama3_8b"):
        built(model="llama3-8")


def test_learned_positions_limit_the_sequence() -> None:
    with pytest.raises(ScenarioError, match="positions"):
        built(model={**SIZES, "learned_positions": True, "max_len": 16})
