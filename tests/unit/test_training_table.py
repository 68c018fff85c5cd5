"""Rows of a training table as jobs, their predictions, memory, and the fit."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from costmodels.catalog import Catalog
from simcore.tables.training import TABLE, iteration, jobs_of, overheads_of, predict, predict_memory, prepare
from simcore.training.overheads import Overheads
from simcore.training.rows import Reader, seconds_of
from simcore.training.shapes import read_model

ROW: dict[str, Any] = {
    "gpu": "H100-SXM-80GB", "n_gpus": 64, "gpus_per_node": 8, "interconnect": "8x400Gb IB NDR", "model": "LLAMA3_70B",
    "params_b": 70.6, "layers": 80, "hidden": 8192, "ffn": 28672, "heads": 64, "kv_heads": 8, "vocab": 128256, "moe": None,
    "seq_len": 8192, "precision": "BF16", "tp": 4, "pp": 4, "vp": 5, "dp": 4, "cp": 1, "ep": 1,
    "sharding": "DDP + distributed optimizer", "mbs": 1, "gbs": 128, "recompute": None, "framework": "Megatron-Core",
    "iter_time_s": 15.0, "tokens_per_s_total": None, "tokens_per_s_per_gpu": None, "confidence": "high", "source": "x",
}  # fmt: skip


def frame(*changes: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([{**ROW, **change} for change in changes])


def seconds(**change: Any) -> float:
    return float(predict(frame(change), Catalog()).seconds[0])


def test_a_row_is_read_as_its_framework_runs_it() -> None:
    job = jobs_of(frame({}), Catalog())[0]
    assert job is not None
    choice = job.choice
    assert (choice.dp, choice.tp, choice.pp, choice.vpp, choice.zero) == (4, 4, 4, 5, 1)
    assert choice.sequence_parallel and choice.overlap_param_gather and choice.attention == "flash"
    inter = job.cluster.inter[0]
    assert inter is not None and inter.B_per_s == pytest.approx(50e9)


def test_a_third_of_the_peak_to_two_thirds() -> None:
    flops = 6 * 70.6e9 * 8192 * 128 + 12 * 80 * 8192 * 8192 * 8192 * 128 / 2
    assert 0.33 < flops / (64 * 989e12) / seconds() < 0.67


def test_more_work_takes_longer_and_recomputing_too() -> None:
    assert seconds(gbs=256) > 1.8 * seconds()
    assert seconds(recompute="full") > 1.15 * seconds()
    assert seconds(precision="FP8") < seconds()


def test_memory_of_a_job() -> None:
    found, again = predict_memory(frame({}, {"recompute": "full"}), Catalog())
    assert 40e9 < again < found < 120e9


def test_what_rows_leave_open_is_chosen_to_be_fast() -> None:
    assert seconds(mbs=None) <= seconds(mbs=4) * 1.0001


def test_unknown_devices_and_models_are_not_covered() -> None:
    bare = {"layers": None, "hidden": None, "params_b": None, "model": "secret"}
    assert all(math.isnan(s) for s in (seconds(gpu="abacus"), seconds(**bare), seconds(sharding="ZeRO-3 Offload")))


def test_times_come_from_rates_where_they_must() -> None:
    assert seconds_of({**ROW, "iter_time_s": None, "tokens_per_s_total": 65536.0}) == pytest.approx(16.0)
    kept = prepare(frame({}, {"iter_time_s": None}))
    assert len(kept) == 1 and kept[TABLE.measured].tolist() == [15.0]


def test_experts_are_read_from_words() -> None:
    words = "256 routed top-8 + 1 shared, moe_ffn 2048, first 3 layers dense, MLA"
    model = read_model({**ROW, "moe": words, "model": "DeepSeekV3"})
    assert model is not None and model.experts is not None
    experts = model.experts
    assert (experts.count, experts.per_token, experts.ffn, experts.shared_ffn, experts.dense_layers) == (
        256,
        8,
        2048,
        2048,
        3,
    )
    assert seconds(moe="8 experts top-2", tp=1, dp=16, ep=8) > seconds(tp=1, dp=16)


def test_models_are_known_by_name() -> None:
    model = read_model({"model": "LLAMA3.1_405B", "seq_len": 8192.0, "hidden": float("nan")})
    assert model is not None and (model.shape.layers, model.shape.hidden) == (126, 16384)


def test_overheads_add_up() -> None:
    job = Reader(Catalog()).job(ROW)
    assert job is not None
    plain = iteration(job, {"parameters": {}})
    assert iteration(job, {"parameters": {"step_s": 1.0}}) == pytest.approx(plain + 1.0)
    assert iteration(job, {"parameters": {"products": 1.2}}) > plain
    assert overheads_of(job, {"products": 1.1, "megatron": {"products": 1.3}}).products == 1.3
    assert Overheads(spread=0.01).slowest(64) == pytest.approx(1.03)


@pytest.mark.slow
def test_the_fit_finds_what_made_the_rows() -> None:
    from simcore.fit.training import fit

    rows = prepare(frame(*({"gbs": 64 * k, "seq_len": s, "tp": t, "dp": 16 // t} for k, s, t in
                           ((1, 8192, 4), (2, 4096, 4), (2, 16384, 8), (4, 2048, 2), (1, 32768, 4), (2, 8192, 2)))))  # fmt: skip
    made = {"parameters": {"products": 1.3, "exposed": 0.1, "step_s": 5e-3, "spread": 0.005}}
    rows["iteration_s"] = [iteration(job, made) for job in jobs_of(rows, Catalog()) if job is not None]
    again = fit(rows, Catalog())
    off = predict(rows, Catalog(), again).seconds / rows["iteration_s"].to_numpy() - 1
    assert np.abs(off).max() < 0.02
