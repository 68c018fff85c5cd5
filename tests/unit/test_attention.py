"""Attention: no kernel is faster than its data sheet, more work takes longer, and what was not measured says so."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.arithmetic import native_dtype
from costmodels.attention import LIBRARIES, predict
from costmodels.attention_kernels import EXP_PER_CYCLE, Hardware, Shape, decode, keys_walked, prefill
from costmodels.attention_parameters import TYPICAL, family, keys, multiplied, uses_lanes
from costmodels.catalog import Catalog
from costmodels.fit.attention import fit
from costmodels.fit.flash_rows import from_flash
from costmodels.kernels import kernel, nbytes
from costmodels.tables.attention import TABLE, library_of

CATALOG = Catalog()
DEVICES = ("h100_sxm", "a100_sxm_80", "b200_sxm", "l40s", "v100_sxm2_16", "rtx_5090", "mi300x", "server_cpu", "tpu_v5e")
LIBRARY = st.sampled_from((None, *(x for x in LIBRARIES if x != "sglang")))
HEADS = st.sampled_from([(8, 1), (8, 8), (32, 8), (64, 64), (64, 1)])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(DEVICES),
    st.sampled_from(["bfloat16", "fp8"]),
    LIBRARY,
    st.integers(1, 64),
    st.integers(1, 9000),
    HEADS,
)
def test_no_prefill_beats_the_peak(
    name: str, dtype: str, library: str | None, batch: int, length: int, heads: tuple[int, int]
) -> None:
    device = CATALOG.device(name)
    for causal in (False, True):
        for backward in (False, True):
            found = predict(
                device, dtype, batch, length, length, *heads, 128, causal, library=library, backward=backward
            )
            pairs = length * (length + 1) / 2 if causal else length**2
            work = (10.0 if backward else 4.0) * batch * heads[0] * 128 * pairs
            assert found.seconds >= work / device.flop_per_s[native_dtype(dtype, device)]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(DEVICES),
    st.sampled_from(["bfloat16", "fp8"]),
    LIBRARY,
    st.integers(1, 256),
    st.integers(64, 99999),
    HEADS,
)
def test_no_cold_cache_is_read_faster_than_memory(
    name: str, cache: str, library: str | None, batch: int, length: int, heads: tuple[int, int]
) -> None:
    device = CATALOG.device(name)
    found = predict(device, "bfloat16", batch, 1, length, *heads, 128, True, kv_dtype=cache, library=library)
    size = 2 * batch * length * heads[1] * 128 * (1.0 if cache == "fp8" else 2.0)
    assert found.seconds >= size / device.memory_B_per_s
    warm = predict(device, "bfloat16", batch, 1, length, *heads, 128, True, kv_dtype=cache, library=library, warm=True)
    assert warm.seconds <= found.seconds


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(DEVICES),
    LIBRARY,
    st.integers(1, 64),
    st.integers(17, 9000),
    st.integers(1, 9000),
    HEADS,
    st.booleans(),
)
def test_more_work_takes_longer(
    name: str, library: str | None, batch: int, length: int, more: int, heads: tuple[int, int], causal: bool
) -> None:
    device = CATALOG.device(name)
    base = {"causal": causal, "library": library, "heads": heads[0], "kv_heads": heads[1], "head_dim": 128}
    lengths = np.array([length, length + more])
    longer = predict(device, "bfloat16", batch, lengths, lengths, **base).seconds
    assert longer[0] <= longer[1] * (1 + 1e-9)
    wider = predict(device, "bfloat16", np.array([batch, batch + 1]), length, length, **base).seconds
    assert wider[0] <= wider[1] * (1 + 1e-9)


@given(st.integers(1, 2000), st.integers(0, 2000))
def test_blocks_walk_through_every_key_that_a_query_sees(q_len: int, before: int) -> None:
    kv_len = q_len + before
    rows = 128 if q_len > 64 else 64
    counted = sum(min(kv_len, before + first + rows) for first in range(0, q_len, rows))
    assert keys_walked(q_len, kv_len, True) == counted
    assert keys_walked(q_len, kv_len, False) == -(-q_len // rows) * kv_len


def test_prefill_by_hand() -> None:
    """One block on one multiprocessor: a product of 128 x 128 x 64, as many exponentials, another product."""
    hw = Hardware(flop_per_s=1e12, B_per_s=np.inf, units=1.0, clock_hz=1e9, l2_B=1.0, launch_s=1e-6)
    s = Shape(batch=1, q_len=128, kv_len=128, heads=1, kv_heads=1, head_dim=64, query_B=2.0, cache_B=2.0, causal=False)
    p = {**TYPICAL["prefill"], "tensor": 0.5, "softmax": 1.0, "fill": 0.0, "longest": 1e-9, "launch": 3.0}
    expected = 3e-6 + 4 * 128 * 128 * 64 / 0.5e12 + 128 * 128 / (EXP_PER_CYCLE * 1e9)
    assert prefill(hw, s, p) == pytest.approx(expected, rel=1e-6)


def test_decode_by_hand() -> None:
    """A large cache streams, a small one comes from L2, and one block walks through its keys one after the other."""
    hw = Hardware(flop_per_s=1e15, B_per_s=1e12, units=100.0, clock_hz=1e9, l2_B=50e6, launch_s=1e-6)
    p = {**TYPICAL["decode"], "launch": 0.0, "stream": 0.8, "token": 1e-9, "lanes": 1e9, "cache": 1.0}
    sizes = {"q_len": 1, "heads": 32, "kv_heads": 8, "head_dim": 128, "query_B": 0.0, "cache_B": 2.0}
    assert decode(hw, Shape(batch=64, kv_len=8192, **sizes), p) == pytest.approx(64 * 8192 * 8 * 512 / 0.8e12, rel=1e-6)
    assert decode(hw, Shape(batch=1, kv_len=512, **sizes), p) == pytest.approx(512 * 8 * 512 / 1.6e12, rel=1e-6)
    chained = {**p, "stream": 1.0, "token": 1000.0, "splits": 4.0, "occupancy": 1.0}
    assert decode(hw, Shape(batch=1, kv_len=4096, **sizes), chained) == pytest.approx(1e-3 * 4096 / 4 / 1e3, rel=0.03)


def test_a_narrow_cache_decodes_faster() -> None:
    device = CATALOG.device("h100_sxm")
    wide, narrow = (
        predict(device, "bfloat16", 64, 1, 8192, 32, 8, 128, True, kv_dtype=t).seconds for t in (None, "fp8")
    )
    assert 0.5 < narrow / wide < 0.75


def test_libraries_differ_and_none_is_one_that_was_measured() -> None:
    device, sizes = CATALOG.device("h100_sxm"), (8, 4096, 4096, 32, 8, 128, True)
    times = {
        library: float(predict(device, "bfloat16", *sizes, library=library).seconds) for library in ("trtllm", "vllm")
    }
    assert float(predict(device, "bfloat16", *sizes).seconds) == times["vllm"] < times["trtllm"]


def test_what_was_not_measured_is_extrapolated() -> None:
    known = predict(CATALOG.device("h100_sxm"), "bfloat16", 4, 4096, 4096, 32, 8, 128, True, library="vllm")
    assert not known.extrapolated and known.error < 0.15
    for name, length in (("h200_sxm", 4096), ("t4", 4096), ("h100_sxm", 1_000_000)):
        other = predict(CATALOG.device(name), "bfloat16", 4, length, length, 32, 8, 128, True, library="vllm")
        assert other.extrapolated and other.error > known.error
    assert np.isnan(predict(CATALOG.device("t4"), "complex64", 1, 64, 64, 1, 1, 64, True).seconds)


def test_arrays_are_what_their_elements_are() -> None:
    device = CATALOG.device("a100_sxm")
    rng = np.random.default_rng(0)
    q = np.where(np.arange(40) % 2, 1, rng.integers(1, 3000, 40))
    kv = q + rng.integers(0, 3000, 40)
    batch = rng.integers(1, 64, 40)
    together = predict(device, "bfloat16", batch, q, kv, 32, 8, 128, True, library="trtllm")
    alone = [
        float(predict(device, "bfloat16", b, x, y, 32, 8, 128, True, library="trtllm").seconds)
        for b, x, y in zip(batch, q, kv, strict=True)
    ]
    np.testing.assert_allclose(together.seconds, alone)
    assert predict(device, "bfloat16", batch[:, None], 64, kv[None, :], 32, 8, 128, True).seconds.shape == (40, 40)


def test_rules_of_tensorrt_llm() -> None:
    """A block for every 4 of 108 multiprocessors is 27: 2 sequences and heads times 2,048 / 128 chunks are enough, 1 is not."""
    found = uses_lanes("trtllm", "ampere", False, 108, 2048, [2, 1, 2, 2], [8, 8, 1, 64])
    assert found.tolist() == [False, True, True, True]
    assert not uses_lanes("vllm", "ampere", False, 108, 2048, [8], [1]).any()
    assert multiplied("bfloat16", "fp8", "hopper", "trtllm") == "fp8"
    assert multiplied("bfloat16", "fp8", "hopper", "vllm") == "bfloat16"


def test_families_are_of_the_same_kernels() -> None:
    names = {"h200_sxm": "hopper", "gb200": "blackwell", "rtx_5090": "blackwell_graphics", "a30": "ampere"}
    names |= {"rtx_a5000": "ampere_graphics", "l4": "ada", "server_cpu": "x86"}
    assert {name: family(CATALOG.device(name)) for name in names} == names
    assert keys("decode", "hopper", "float16", "int8", None)["format"] == "decode/half/byte"


@pytest.mark.parametrize(
    ("source", "library"),
    [
        ("aiconfigurator trtllm/1.3.0rc10", "trtllm"),
        ("vllm/0.19.0", "vllm"),
        ("FlashAttention-3 fp8", "flash3"),
        ("FlashAttention-4 bwd 2CTA", "flash4"),
        ("standard (PyTorch)", "pytorch"),
        ("Triton tutorial 06", "triton"),
        ("somebody", None),
    ],
)
def test_libraries_by_the_words_of_a_source(source: str, library: str | None) -> None:
    assert library_of(source) == library


def frame() -> pd.DataFrame:
    """Every kernel of two devices at some sizes."""
    made = [
        {"phase": phase, "batch": b, "q_len": 1 if phase == "decode" else n, "kv_len": n, "heads": h, "kv_heads": hk}
        for phase in ("prefill", "decode")
        for b in (1, 8, 64)
        for n in (512, 2048, 8192)
        for h, hk in ((32, 8), (32, 32), (8, 1))
    ]
    of = [
        (d, "bfloat16", c, f"aiconfigurator {lib}/1")
        for d in ("h100_sxm", "a100_sxm")
        for c in ("bfloat16", "fp8")
        for lib in ("trtllm", "vllm")
    ]
    rows = [
        {**m, "device": d, "dtype": t, "kv_dtype": c, "source": s, "head_dim": 128} for d, t, c, s in of for m in made
    ]
    return pd.DataFrame(rows).assign(latency_s=1.0)


def test_fit_finds_the_effects_that_made_the_rows() -> None:
    given_rows = frame()
    given_rows["latency_s"] = TABLE.predict(given_rows, CATALOG, None).seconds * np.where(
        given_rows["device"] == "h100_sxm", 1.3, 1.0
    )
    found = fit(given_rows, CATALOG)
    again = TABLE.predict(given_rows, CATALOG, found)
    error = np.abs(again.seconds / given_rows["latency_s"] - 1.0)
    assert np.median(error) < 0.03
    assert not again.extrapolated.any()
    assert np.mean(error <= again.error) == pytest.approx(0.8, abs=0.05)
    assert found["devices"]["decode"] == ["a100_sxm_80", "h100_sxm"] and found["best"]["hopper"] in ("trtllm", "vllm")
    assert fit(given_rows, CATALOG) == found


def test_rows_that_cannot_be_attention_teach_nothing_else() -> None:
    good = frame()
    good["latency_s"] = TABLE.predict(good, CATALOG, None).seconds
    odd = good[(good["device"] == "h100_sxm") & (good["source"] == "aiconfigurator vllm/1")].assign(source="sglang/1")
    odd["latency_s"] = 1e-6
    both = fit(pd.concat([good, odd], ignore_index=True), CATALOG)
    apart = fit(good, CATALOG)
    for level in ("kind", "family", "format"):
        shared = {k: v for k, v in both["parameters"][level].items() if k.startswith("prefill")}
        assert shared == {k: v for k, v in apart["parameters"][level].items() if k.startswith("prefill")}
    assert both["best"]["hopper"] == apart["best"]["hopper"]


def test_rows_of_flash_attention_become_rows_of_the_table() -> None:
    """The FlashAttention-3 paper's 16 x 1,024 tokens of 32 heads of 64: 306 Tflop/s in 449 us."""
    row = {"gpu": "H100-SXM5-80GB", "op": "attention fwd", "impl": "FlashAttention-2", "dtype": "fp16", "causal": False}
    row |= {"batch": 16, "heads": 32, "kv_heads": 32, "head_dim": 64, "seq_q": 1024, "seq_kv": 1024, "time_us": 449.15}
    both = from_flash(pd.DataFrame([row, {**row, "op": "attention fwd+bwd"}]))
    assert len(both) == 1
    assert TABLE.predict(both, CATALOG, None).seconds[0] == pytest.approx(449.15e-6, rel=0.2)
    flops = 4 * 16 * 32 * 64 * 1024**2
    assert TABLE.roofline(both, CATALOG)[0] == pytest.approx(flops / 989.4e12)


def test_roofline_is_bytes_over_bandwidth_when_decoding() -> None:
    one = frame()[lambda f: (f["phase"] == "decode") & (f["kv_dtype"] == "bfloat16")].head(1)
    shape = {s: int(one[s].iloc[0]) for s in ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim")}
    expected = nbytes(kernel("attention", "bfloat16", causal=1, **shape)) / 3352e9
    assert TABLE.roofline(one, CATALOG)[0] == pytest.approx(expected)
