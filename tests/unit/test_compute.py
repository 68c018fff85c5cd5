"""Estimates of kernels: never faster than the data sheet, slower with more work, honest about where they come from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.arithmetic import native_dtype
from costmodels.catalog import Catalog
from costmodels.compute import estimate, seconds
from costmodels.gemm import gemm_seconds
from costmodels.kernels import LOGPROBS, flops, kernel, nbytes

CATALOG = Catalog()
DEVICES = ("h100_sxm", "a100_sxm_80", "v100_sxm2_16", "t4", "l40s", "mi300x", "jetson_orin", "server_cpu")
SIZE = st.integers(1, 8192)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DEVICES), st.sampled_from(["bfloat16", "float32", "fp8"]), SIZE, SIZE, SIZE)
def test_no_product_is_faster_than_the_roofline(name: str, dtype: str, m: int, n: int, k: int) -> None:
    device = CATALOG.device(name)
    made = kernel("gemm", dtype, m=m, n=n, k=k)
    peak = device.flop_per_s[native_dtype(dtype, device)]
    assert estimate(made, device).seconds >= max(flops(made) / peak, 0.5 * nbytes(made) / device.memory_B_per_s / 4)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DEVICES), SIZE, SIZE, SIZE, st.integers(2, 4))
def test_a_larger_product_takes_longer(name: str, m: int, n: int, k: int, times: int) -> None:
    device = CATALOG.device(name)
    small, large = (float(gemm_seconds(device, "bfloat16", 1, m * s, n, k * s)) for s in (1, times))
    assert large >= small


@pytest.mark.parametrize("name", DEVICES)
def test_launches_add_up_and_streams_grow_with_size(name: str) -> None:
    device = CATALOG.device(name)
    once, thrice = (estimate(kernel("add", "float32", rows=512, cols=512, count=c), device).seconds for c in (1, 3))
    assert thrice == pytest.approx(3 * once)
    sizes = [estimate(kernel("add", "float32", rows=2**e, cols=1024), device).seconds for e in range(0, 16, 3)]
    assert sizes == sorted(sizes)
    both = [kernel("add", "float32", rows=512, cols=512), kernel("gemm", "float32", m=64, n=64, k=64)]
    assert seconds(both, device) == pytest.approx(sum(estimate(k, device).seconds for k in both))


@pytest.mark.parametrize("name", DEVICES)
def test_logprobs_take_what_their_products_do(name: str) -> None:
    """Forward less than the product that writes its logits, backward three products; never faster than the roofline."""
    device = CATALOG.device(name)
    peak = device.flop_per_s[native_dtype("bfloat16", device)]
    made = [kernel(each, "bfloat16", rows=4096, cols=576, vocab=49152) for each in LOGPROBS]
    forward, backward = (estimate(each, device).seconds for each in made)
    logits = estimate(kernel("gemm", "bfloat16", m=4096, n=49152, k=576), device).seconds
    assert forward < logits < backward
    for each, found in zip(made, (forward, backward), strict=True):
        assert found >= flops(each) / peak
        assert estimate(each, device).extrapolated


def test_a_dtype_without_arithmetic_is_computed_as_another_and_says_so() -> None:
    found = estimate(kernel("gemm", "bfloat16", m=256, n=256, k=256), CATALOG.device("v100_sxm2_16"))
    assert "bfloat16 computed as float32" in found.source
    assert native_dtype("fp8", CATALOG.device("a100_sxm_80")) == "bfloat16"


def test_many_products_at_once_are_what_they_are_one_by_one() -> None:
    device = CATALOG.device("h100_sxm")
    sizes = np.random.default_rng(0).integers(1, 4096, (3, 50))
    together = gemm_seconds(device, "bfloat16", 1, *sizes)
    alone = [estimate(kernel("gemm", "bfloat16", m=int(m), n=int(n), k=int(k)), device).seconds for m, n, k in sizes.T]
    np.testing.assert_allclose(together, alone)
    assert together.shape == (50,)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DEVICES), st.sampled_from(["attention", "attention_backward"]), st.integers(1, 64), SIZE)
def test_attention_is_fitted_and_no_faster_than_the_roofline(name: str, kind: str, batch: int, length: int) -> None:
    device = CATALOG.device(name)
    made = kernel(
        kind, "bfloat16", batch=batch, q_len=length, kv_len=length, heads=32, kv_heads=8, head_dim=128, causal=1
    )
    found = estimate(made, device)
    assert found.method == "fitted" and found.error is not None and found.error > 0
    assert found.seconds >= flops(made) / device.flop_per_s[native_dtype("bfloat16", device)]


def test_estimates_say_when_they_are_extrapolated() -> None:
    known = estimate(kernel("add", "float32", rows=65536, cols=1024), CATALOG.device("v100_pcie"))
    other = estimate(kernel("add", "float32", rows=65536, cols=1024), CATALOG.device("h100_sxm"))
    assert (known.method, known.extrapolated) == ("fitted", False)
    assert (other.method, other.extrapolated) == ("fitted", True)
    assert known.error is not None and other.error is not None and known.error < other.error
