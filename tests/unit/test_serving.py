"""Prefill and decode of a transformer on some devices, and the table of serving engines."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.catalog import Catalog
from costmodels.fit.serving import PRIORS, fit
from costmodels.model_config import named
from costmodels.served_models import shape_of
from costmodels.serving import decode, engine_name, prefill, served
from costmodels.serving_parts import Place, cache_B, largest_batch, precision_of, weights_B
from costmodels.tables.serving import TABLE, prepare

CATALOG = Catalog()
A100 = CATALOG.device("a100_sxm_80")
LLAMA = named("llama2_7b")
LLAMA_7B = served(LLAMA, A100, "fp16")


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 256), st.integers(1, 256), st.integers(16, 4096))
def test_more_sequences_and_longer_ones_take_no_less(a: int, b: int, length: int) -> None:
    few, many = sorted((a, b))
    short = decode(LLAMA_7B, [few, many], [length, length]).seconds
    assert short[0] <= short[1] * 1.05  # tiles and splits of products make small steps down
    longer = decode(LLAMA_7B, few, 2 * length).seconds
    assert short[0] <= longer * (1 + 1e-9)


@pytest.mark.parametrize("name", ["a100_sxm_80", "h100_sxm", "l40s", "t4"])
def test_a_step_reads_all_weights_and_a_prompt_computes_all_products(name: str) -> None:
    device, half = CATALOG.device(name), precision_of("fp16")
    assert half is not None
    assert decode(served(LLAMA, device, "fp16"), 1, 128).seconds >= weights_B(LLAMA, half) / device.memory_B_per_s * 0.9
    flops = 2 * 6.5e9 * 2048
    assert prefill(served(LLAMA, device, "fp16"), 1, 2048).seconds >= flops / device.flop_per_s["float16"]


def test_tensor_parallel_ranks_help_less_than_their_number() -> None:
    one, two = (float(prefill(served(LLAMA, A100, "fp16", tp), 8, 1024).seconds) for tp in (1, 2))
    assert one / 2 < two < one


def test_narrow_weights_make_steps_shorter() -> None:
    shape = named("llama2_13b")
    half, quarter = (float(decode(served(shape, A100, p, engine="trt-llm"), 1, 128).seconds) for p in ("fp16", "w4a16"))
    assert quarter < half


def test_what_was_not_measured_is_extrapolated() -> None:
    seen = decode(served(named("llama2_70b"), A100, "fp16", tp=4), 1, 512)
    new_device = decode(served(LLAMA, CATALOG.device("l4"), "fp16"), 1, 512)
    new_engine = decode(served(LLAMA, A100, "fp16", engine="something new"), 1, 512)
    assert not seen.extrapolated
    assert new_device.extrapolated and new_engine.extrapolated
    assert new_device.error >= seen.error


def test_memory_by_hand() -> None:
    """Llama 2 7B: 32 layers, 4096 of keys and of values, two bytes: 512 KiB a token."""
    half = precision_of("FP16")
    assert half is not None
    assert cache_B(LLAMA, half, 1) == 2**19
    batch = largest_batch(LLAMA, Place(device=A100), half, 1536.0)
    assert batch == math.floor((0.9 * A100.memory_B - weights_B(LLAMA, half)) / (1536 * 2**19))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("FT (PyTorch)", "ft"),
        ("EFF-FT (TensorFlow); EFF removes padding", "eff-ft"),
        ("TF (TensorFlow)", "tensorflow"),
        ("vLLM 0.19.0 max_num_seqs=256", "vllm"),
        ("FasterTransformer Triton", "triton"),
        ("TRT-LLM-W4A16", "trt-llm"),
    ],
)
def test_engines(words: str, name: str) -> None:
    assert engine_name(words) == name


def test_shapes_from_names_sizes_and_parameters() -> None:
    assert shape_of("meta-llama/Llama-3.1-8B") == named("llama3_8b")
    assert shape_of("Llama 2 13 B") == named("llama2_13b")
    plain = shape_of("GPT-20B", 44, 6144, 48, 48)
    assert plain is not None and (plain.layers, plain.ffn) == (44, 4 * 6144)
    guessed = shape_of("Unheard-Of-13B")
    assert guessed is not None and 0.8 < guessed.layers * 12 * guessed.hidden**2 / 13e9 < 1.2
    assert shape_of("Qwen3-30B-A3B") is None and shape_of("Mixtral-8x7B") is None


def row(metric: str, value: float, unit: str, **more: object) -> dict[str, object]:
    plain = {"gpu": "A100-SXM-80GB", "n_gpus": 1, "interconnect": None, "model": "llama2-7b", "params_b": np.nan}
    plain |= dict.fromkeys(("layers", "hidden", "heads", "kv_heads"), np.nan)
    plain |= {"precision": "fp16", "tp": 1, "pp": 1, "engine": "vLLM", "batch_or_concurrency": 8.0, "notes": None}
    return {**plain, "input_len": 512.0, "output_len": 128.0, "metric": metric, "value": value, "unit": unit, **more}


def test_metrics_become_seconds() -> None:
    frame = pd.DataFrame(
        [
            row("prompt (TTFT) time", 250.0, "ms"),
            row("inter-token p50", 0.02, "s"),
            row("output throughput", 400.0, "tok/s"),
            row("memory", 12.0, "GB"),
            row("TTFT p99", 3.0, "s"),
            row("TTFT mean", 3.0, "s", notes="3000 ShareGPT prompts, infinite request rate"),
        ]
    )
    found = prepare(frame)
    assert found["quantity"].tolist() == ["prefill", "decode", "token"]
    assert found["seconds"].tolist() == pytest.approx([0.25, 0.02, 1 / 400])
    assert np.isfinite(TABLE.predict(found, CATALOG, None).seconds).all()


def test_fit_comes_close_to_rows_that_the_model_made() -> None:
    truth = {key: middle for key, (middle, _) in PRIORS.items()} | {"linear": 1.3, "host_layer_s": 4e-4}
    made = {
        "parameters": {"engines": {"vllm": truth}, "typical": truth},
        "devices": [],
        "error": {"engines": {}, "unseen": 0.2},
    }
    lengths = [(m, b, n) for m in ("prompt (TTFT) time", "token (TBT) time") for b in (1, 8, 64) for n in (128, 1024)]
    frame = prepare(
        pd.DataFrame([row(m, 1.0, "ms", batch_or_concurrency=float(b), input_len=float(n)) for m, b, n in lengths])
    )
    frame["seconds"] = TABLE.predict(frame, CATALOG, made).seconds
    found = fit(frame, CATALOG)
    again = TABLE.predict(frame, CATALOG, found)
    assert again.seconds == pytest.approx(frame["seconds"].to_numpy(), rel=0.03)
    assert found["parameters"]["engines"]["vllm"]["host_layer_s"] == pytest.approx(4e-4, rel=0.1)
