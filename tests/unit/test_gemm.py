"""Matrix products: numbers by hand, laws, and a fit that finds what made its rows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.arithmetic import FORMATS, format_of
from costmodels.catalog import Catalog
from costmodels.fit.gemm import fit, floors
from costmodels.fit.hierarchy import Problem, solve
from costmodels.gemm import Hardware, predict, seconds
from costmodels.gemm_parameters import TYPICAL, keys, lookup
from costmodels.tables.gemm import TABLE, library_of

CATALOG = Catalog()
SEEN = (("h100_sxm", "bfloat16"), ("b200_sxm", "nvfp4"), ("l40s", "int4_wo"), ("a100_sxm", "int8"), ("t4", "float32"))
UNSEEN = (("h200_sxm", "fp8_block"), ("mi300x", "bfloat16"), ("rtx_4090", "fp8"), ("l4", "float32"), ("a30", "tf32"))
SIZE = st.integers(1, 16384)
PLAIN = {**TYPICAL, "half": 0.0, "fill": 0.0, "least": 1e-9, "wave": 1e12, "wide": 0.0, "reread": 0.0, "peak": 1.0}


def ideal(**sheet: float) -> Hardware:
    """A device without limits but those given."""
    limits = {"flop_per_s": 1e30, "B_per_s": 1e30, "units": 1.0, "l2_B": 1e-9, "launch_s": 0.0, "power_W": np.inf}
    return Hardware(**{**limits, **sheet})


def test_whole_tiles_run_at_the_peak_and_parts_of_tiles_cost_whole_ones() -> None:
    device = ideal(flop_per_s=1e12)
    took = seconds(device, FORMATS["bfloat16"], PLAIN, 1.0, np.array([256.0, 257.0]), 128.0, 64.0)
    rows = np.array([256, 264])  # tiles of 8 rows waste the least of 257
    np.testing.assert_allclose(took, 2 * rows * 128 * 64 / 1e12)


def test_waves_that_do_not_fill_the_device_cost_whole_waves() -> None:
    device = ideal(flop_per_s=64e12, units=64.0)
    few, many = (float(seconds(device, FORMATS["float32"], PLAIN, b, 8.0, 64.0, 32.0)) for b in (64.0, 65.0))
    assert many == pytest.approx(2 * few)


def test_what_does_not_fit_the_cache_crosses_memory_once_and_what_fits_is_faster() -> None:
    p = {**PLAIN, "stream": 0.8, "resident": 1.0, "cache": 4.0}
    m, n, k = 16.0, 4096.0, 4096.0
    nbytes = 2 * m * k + 0.515625 * k * n + 2 * m * n
    form = FORMATS["int4_wo"]
    assert float(seconds(ideal(B_per_s=1e12), form, p, 1.0, m, n, k)) == pytest.approx(nbytes / 0.8e12)
    assert float(seconds(ideal(B_per_s=1e12, l2_B=1e15), form, p, 1.0, m, n, k)) == pytest.approx(nbytes / 3.2e12)


def test_power_slows_long_products_only() -> None:
    p = {**PLAIN, "energy_J": 1e-12, "heat_s": 1e-3}
    capped, free = ideal(flop_per_s=100e12, power_W=25.0), ideal(flop_per_s=100e12)
    ratios = [
        float(seconds(capped, FORMATS["bfloat16"], p, b, 256.0, 128.0, 64.0))
        / float(seconds(free, FORMATS["bfloat16"], p, b, 256.0, 128.0, 64.0))
        for b in (1.0, 1e8)
    ]
    assert ratios[0] == pytest.approx(1.0, abs=0.01) and ratios[1] == pytest.approx(4**0.75, rel=0.01)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SEEN + UNSEEN), SIZE, SIZE, SIZE)
def test_nothing_is_faster_than_the_peak_or_the_cache(where: tuple[str, str], m: int, n: int, k: int) -> None:
    device, form = CATALOG.device(where[0]), format_of(where[1], CATALOG.device(where[0]))
    assert form is not None
    took = float(predict(device, where[1], 1, m, n, k).seconds)
    nbytes = form.a_B * m * k + form.b_B * k * n + form.c_B * m * n
    assert took >= max(2 * m * n * k / device.flop_per_s[form.peak], nbytes / device.memory_B_per_s / 12)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SEEN + UNSEEN), SIZE, SIZE, SIZE, st.sampled_from("bmnk"), st.integers(2, 5))
def test_more_work_takes_longer(where: tuple[str, str], m: int, n: int, k: int, grown: str, times: int) -> None:
    sizes = {"b": 1, "m": m, "n": n, "k": k}
    more = {**sizes, grown: sizes[grown] * times}
    small, large = (predict(CATALOG.device(where[0]), where[1], *s.values()).seconds for s in (sizes, more))
    assert float(large) >= float(small) * (1 - 1e-9)


@pytest.mark.parametrize(("name", "dtype"), SEEN)
def test_a_measured_device_is_not_extrapolated(name: str, dtype: str) -> None:
    found = predict(CATALOG.device(name), dtype, 1, 2048, 4096, 4096)
    assert not found.extrapolated and 0 < found.error < 0.5


@pytest.mark.parametrize(("name", "dtype"), UNSEEN)
def test_an_unmeasured_device_is_extrapolated(name: str, dtype: str) -> None:
    found = predict(CATALOG.device(name), dtype, 1, 2048, 4096, 4096)
    assert found.extrapolated and found.error > 0.1 and np.isfinite(found.seconds)


def test_sizes_outside_of_the_measurements_are_extrapolated_with_a_wider_error() -> None:
    found = predict(CATALOG.device("h100_sxm"), "bfloat16", 1, np.array([4096, 4096]), 4096, np.array([4096, 16]))
    assert found.extrapolated.tolist() == [False, True]
    assert found.error[1] > found.error[0]


def test_arguments_broadcast_and_an_unknown_dtype_has_no_answer() -> None:
    device = CATALOG.device("h100_sxm")
    sizes = np.array([[64], [128]]), np.array([64, 4096, 8192])
    assert predict(device, "bfloat16", 1, *sizes, 512).seconds.shape == (2, 3)
    assert np.isnan(predict(device, "ternary", 1, *sizes, 512).seconds).all()


def test_narrow_weights_help_where_weights_are_what_moves() -> None:
    device = CATALOG.device("a100_sxm")
    few, many = (
        [float(predict(device, d, 1, m, 16384, 16384).seconds) for d in ("bfloat16", "int4_wo")] for m in (1, 8192)
    )
    assert few[1] < 0.5 * few[0] and many[1] > 0.9 * many[0]


def test_a_device_without_narrow_arithmetic_widens_narrow_weights() -> None:
    a100 = CATALOG.device("a100_sxm")
    found = {dtype: format_of(dtype, a100) for dtype in ("fp8", "nvfp4", "bfloat16")}
    assert [f.kind for f in found.values() if f] == ["int8_wo", "int4_wo", "half"]
    assert {f.peak for f in found.values() if f} == {"bfloat16"}
    assert getattr(format_of("bfloat16", CATALOG.device("p100_pcie")), "kind", "") == "vector"


def test_libraries_differ_and_a_host_s_timer_counts_only_where_it_was_used() -> None:
    device = CATALOG.device("h100_sxm")
    slow, fast = (float(predict(device, "fp8", 1, 16, 1024, 1024, library=x).seconds) for x in ("trtllm", "vllm"))
    assert slow > 1.5 * fast
    timed, plain = (float(predict(device, "float32", 1, 64, 64, 64, library=x).seconds) for x in ("pytorch", None))
    assert timed > plain + 5e-6


def test_effects_of_all_levels_multiply() -> None:
    device = CATALOG.device("h100_sxm")
    effects = {
        "all": {"all": {"fill": 0.1}},
        "family": {"hopper/half": {"fill": 0.2}},
        "device": {"t4/half": {"fill": 9.0}},
    }
    assert lookup(effects, keys(device, "half", None))["fill"] == pytest.approx(TYPICAL["fill"] * np.exp(0.3))


def test_effects_belong_to_the_level_that_explains_them() -> None:
    """Two of three groups agree: what they share goes to the general level."""
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 200)
    size = rng.uniform(1, 10, 600)
    rate = np.array([2.0, 2.0, 4.0])[group]
    found = solve(
        Problem(
            logs=lambda p: np.log(size / p["rate"]),
            measured=np.log(size / rate) + rng.normal(0, 0.05, 600),
            group=group,
            keys=[{"all": "all", "one": name} for name in "abc"],
            typical={"rate": 1.0},
            deviation={"all": {"rate": 1.0}, "one": {"rate": 0.3}},
        )
    )
    total = {name: np.exp(found["all"]["all"]["rate"] + found["one"].get(name, {}).get("rate", 0.0)) for name in "abc"}
    assert [total[name] for name in "abc"] == pytest.approx([2.0, 2.0, 4.0], rel=0.02)
    assert 2.0 < np.exp(found["all"]["all"]["rate"]) < 3.5


def rows(truth: dict[str, object]) -> pd.DataFrame:
    """Products on two devices as the model with `truth` times them."""
    rng = np.random.default_rng(1)
    size = {name: 2 ** rng.integers(low, 15, 160) for name, low in (("m", 0), ("n", 10), ("k", 10))}
    made = [
        pd.DataFrame({"device": name, "dtype": "bfloat16", "batch": 1, **size, "source": "vLLM"})
        for name in ("h100_sxm", "a100_sxm")
    ]
    return pd.concat(made, ignore_index=True).assign(
        latency_s=lambda f: TABLE.predict(f, CATALOG, {**truth, "error": NO_ERROR, "range": {}}).seconds
    )


NO_ERROR = {"device": {}, "device_library": {}, "unseen": {"all": 0.1}}


def test_a_fit_finds_the_parameters_that_made_its_rows() -> None:
    truth = {
        "all": {"all": {"launch": 0.7}},
        "device": {"h100_sxm/half": {"peak": -0.2}, "a100_sxm_80/half": {"stream": 0.1}},
    }
    frame = rows({"parameters": truth})
    found = fit(frame, CATALOG)
    again = TABLE.predict(frame, CATALOG, found)
    assert np.median(np.abs(again.seconds / frame["latency_s"] - 1)) < 0.01
    for name, library in (("h100_sxm", "vllm"), ("a100_sxm", "vllm")):
        where = keys(CATALOG.device(name), "half", library)
        fitted, true = (lookup(p, where) for p in (found["parameters"], truth))
        assert [fitted[x] for x in ("peak", "stream", "launch")] == pytest.approx(
            [true[x] for x in ("peak", "stream", "launch")], rel=0.05
        )
    assert found == fit(frame, CATALOG)


def test_floors_by_hand() -> None:
    frame = pd.DataFrame(
        {"device": "a", "dtype": "fp8", "m": [1, 1, 2, 2], "n": 1, "k": 1, "latency_s": [1.0, 1.1, 2.0, 2.6]}
    )
    assert floors(frame.assign(source=["vLLM", "SGLang"] * 2)) == {"a/fp8": {"median": 0.196, "p90": 0.278}}


def test_the_table_covers_every_format_and_needs_no_source() -> None:
    frame = pd.DataFrame(
        {"device": "b200_sxm", "dtype": sorted(FORMATS), "batch": np.nan, "m": 64, "n": 4096, "k": 4096}
    )
    frame = pd.concat([frame, frame.iloc[:1].assign(device="abacus")], ignore_index=True)
    found, least = TABLE.predict(frame, CATALOG, None), TABLE.roofline(frame, CATALOG)
    assert np.isfinite(found.seconds).tolist() == [True] * len(FORMATS) + [False]
    assert (found.seconds[:-1] > 0.1 * least[:-1]).all() and np.isnan(least[-1])


@pytest.mark.parametrize(
    ("source", "library"),
    [("aiconfigurator TRTLLM 1.0.0", "trtllm"), ("NeuSight bmm", "pytorch"), ("SGLang", "sglang"), (None, None)],
)
def test_libraries_of_sources(source: object, library: str | None) -> None:
    assert library_of(source) == library
