"""Kernels that move more than they compute: never faster than memory or the L2 cache, monotone, honest about what was measured."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.catalog import Catalog
from costmodels.fit.elementwise import fit
from costmodels.fitted import load
from costmodels.kernels import CONVOLUTIONS, LOGPROBS, NAMES, kernel, nbytes
from costmodels.streaming import (
    L2_SPEEDUP,
    norm_plan,
    parameters_of,
    predict,
    resident_threads,
    row_seconds,
    softmax_plan,
    stream_seconds,
)
from costmodels.tables.elementwise import OPS, TABLE

CATALOG = Catalog()
DEVICES = (
    "h100_sxm",
    "a100_sxm_80",
    "v100_sxm2_16",
    "t4",
    "p4",
    "l4",
    "mi300x",
    "jetson_orin",
    "server_cpu",
    "tpu_v5e",
)
STREAMS = sorted(NAMES - {"gemm", "attention", "attention_backward", *CONVOLUTIONS, *LOGPROBS})
SHAPE = {"rows": 4096, "cols": 2048, "vocab": 32000, "params": 10**7, "elements": 10**7}
SHAPE |= dict.fromkeys(("inputs", "outputs", "reads", "writes"), 10**7)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
def test_every_kernel_has_a_price_on_every_device(name: str, dtype: str) -> None:
    device = CATALOG.device(name)
    for one in STREAMS:
        found = predict(device, one, dtype, SHAPE)
        fastest = nbytes(kernel(one, dtype, **SHAPE)) / device.memory_B_per_s / L2_SPEEDUP
        assert found.seconds >= fastest + device.launch_s
        assert 0.0 < found.error < 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DEVICES), st.sampled_from(["add", "gelu", "silu_mul"]), st.integers(1, 2**30), st.integers(2, 64)
)
def test_streams_grow_with_size(name: str, one: str, elements: int, times: int) -> None:
    device = CATALOG.device(name)
    small, large = predict(device, one, "float32", {"rows": [elements, elements * times], "cols": 1}).seconds
    assert small <= large


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DEVICES), st.sampled_from(["layernorm", "softmax"]), st.integers(1, 2**20), st.integers(1, 2**14)
)
def test_more_rows_take_longer(name: str, one: str, rows: int, cols: int) -> None:
    few, many = predict(CATALOG.device(name), one, "bfloat16", {"rows": [rows, 2 * rows], "cols": cols}).seconds
    assert few <= many


def test_a_stream_by_hand() -> None:
    device, table = CATALOG.device("v100_pcie"), load("elementwise")
    p = parameters_of(device, table)
    expected = (2e9 / p["read_share"] + 1e9 / p["write_share"]) / 900e9
    assert stream_seconds(device, table, 2e9, 1e9) == pytest.approx(expected)
    computed = stream_seconds(device, table, 2e9, 1e9, flops=14e12)
    assert computed == pytest.approx(1.0)  # arithmetic binds: 14 Tflop at 14 Tflop/s


def test_what_fits_into_the_cache_streams_faster() -> None:
    device, table = CATALOG.device("a100_sxm_80"), load("elementwise")
    small, large = (float(stream_seconds(device, table, size, size)) / size for size in (1e5, 1e9))
    assert small == pytest.approx(large / L2_SPEEDUP, rel=0.02)


def test_rows_are_read_again_once_those_in_flight_exceed_the_cache() -> None:
    """A V100 has 80 x 2,048 / 128 blocks of the norm: 1,280 rows of 16 kB are more than its 6 MiB, 1,280 of 512 B are not."""
    device, table = CATALOG.device("v100_pcie"), load("elementwise")
    assert norm_plan(device, parameters_of(device, table), np.array(1.0), 4.0).in_flight == 1280.0
    quotients = []
    for cols in (128.0, 8192.0):
        size = 2**28 * 4.0
        found = row_seconds(device, table, True, 2**28 / cols, cols, 4.0, size, 2 * size)
        quotients.append(float(found / stream_seconds(device, table, size, size)))
    assert quotients[1] > 1.4  # a third pass over memory
    once = row_seconds(device, table, True, 1e5, 8192.0, 4.0, 1e5 * 32768, 2e5 * 32768)
    assert once == pytest.approx(row_seconds(device, table, True, 2e5, 8192.0, 4.0, 2e5 * 32768, 4e5 * 32768) / 2)


def test_blocks_of_softmax_are_pytorchs() -> None:
    """1,280 float32 are 320 loads of 16 bytes: 256 threads load once and then go through 256 elements one by one."""
    device = CATALOG.device("a100_sxm_80")
    p = {"warp_row": 1000.0, "softmax_start": 0.0, "softmax_step": 1.0}
    plan = softmax_plan(device, p, np.array([768.0, 1024.0, 1280.0, 1600.0, 4096.0]), 4.0)
    assert plan.cycles.tolist() == [1000.0, 1000.0, 2.0, 4.0, 2.0]
    assert plan.in_flight[2] == 108 * 2048 / 256
    assert np.asarray(plan.rereads).tolist() == [0.0, 0.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "threads"), [("a100_sxm_80", 2048), ("rtx_a5000", 1536), ("l4", 1536), ("t4", 1024), ("h100_sxm", 2048)]
)
def test_threads_of_a_multiprocessor(name: str, threads: float) -> None:
    assert resident_threads(CATALOG.device(name)) == threads


def test_what_was_not_measured_is_extrapolated() -> None:
    sizes = {"rows": [32768], "cols": [4096]}
    known = predict(CATALOG.device("v100_pcie"), "add", "float32", sizes)
    assert not known.extrapolated.any()
    for other in (
        predict(CATALOG.device("h100_sxm"), "add", "float32", sizes),
        predict(CATALOG.device("v100_pcie"), "add", "bfloat16", sizes),
        predict(CATALOG.device("v100_pcie"), "rope", "float32", sizes),
        predict(CATALOG.device("v100_pcie"), "add", "float32", {"rows": [8], "cols": [8]}),
    ):
        assert other.extrapolated.all() and (other.error > known.error).all()


def rows() -> pd.DataFrame:
    sizes = [(2**e, cols) for e in (13, 15, 17) for cols in (768, 1280, 2048, 4096, 8192)]
    return pd.DataFrame(
        [
            {"device": device, "dtype": "float32", "op": op, "rows": n, "cols": c, "latency_s": 1.0}
            for device in ("v100_pcie", "a100_pcie_40g")
            for op in OPS
            for n, c in sizes
        ]
    )


def test_fit_finds_the_parameters_that_made_the_rows() -> None:
    frame, truth = rows(), load("elementwise")
    frame["latency_s"] = TABLE.predict(frame, CATALOG, truth).seconds
    found = fit(frame, CATALOG)
    for name, share in (("v100_pcie_32", "read_share"), ("a100_pcie_40", "write_share")):
        expected = truth["parameters"]["devices"][name][share]
        assert found["parameters"]["devices"][name][share] == pytest.approx(expected, rel=0.03)
    assert found["parameters"]["harness_s"] == pytest.approx(truth["parameters"]["harness_s"], rel=0.3)
    again = TABLE.predict(frame, CATALOG, found).seconds
    assert np.median(np.abs(again / frame["latency_s"] - 1.0)) < 0.02
    assert fit(frame, CATALOG) == found


def test_table_covers_rows_of_known_devices_and_operators() -> None:
    frame = pd.DataFrame(
        {
            "device": ["v100_pcie", "abacus", "t4"],
            "op": ["add", "add", "sort"],
            "rows": [65536] * 3,
            "cols": [1024] * 3,
            "latency_s": [1.0] * 3,
        }
    )
    assert np.isfinite(TABLE.predict(frame, CATALOG, None).seconds).tolist() == [True, False, False]
    assert TABLE.roofline(frame, CATALOG)[0] == pytest.approx(3 * 4 * 65536 * 1024 / 900e9)
