"""Measured tables are exact at their points and sensible between and beyond them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.catalog import Catalog
from costmodels.kernels import kernel
from costmodels.measured import kernel_seconds, link_seconds

POINTS = [[256, 256, 256, 1e-3], [1024, 256, 256, 3e-3], [1024, 1024, 256, 13e-3]]
DEVICE = replace(
    Catalog().device("server_cpu"),
    measured={"kernels": {"gemm": POINTS, "add": [[128, 128, 1e-5], [1024, 1024, 2e-3]], "adamw": [[1000, 1e-5]]}},
)
LINK = replace(Catalog().link("loopback"), measured={"all_reduce": {2: [[1000, 1e-4], [2000, 2e-4], [4000, 5e-4]]}})


def test_points_are_themselves() -> None:
    for m, n, k, seconds in POINTS:
        found = kernel_seconds(kernel("gemm", "float32", m=int(m), n=int(n), k=int(k), count=2), DEVICE)
        assert found == pytest.approx(2 * seconds, rel=1e-6)


@given(st.integers(10, 17), st.integers(10, 17))
def test_more_of_everything_takes_longer(a: int, b: int) -> None:
    small, large = sorted((a, b))
    times = [kernel_seconds(kernel("adamw", "float32", params=2**e), DEVICE) for e in (small, large)]
    assert times[0] is not None
    assert times[1] is not None
    assert times[0] <= times[1]


def test_what_was_not_measured_is_left_to_the_roofline() -> None:
    assert kernel_seconds(kernel("softmax", "float32", rows=8, cols=8), DEVICE) is None
    assert link_seconds(LINK, "all_gather", 2, 1000) is None
    assert link_seconds(LINK, "all_reduce", 4, 1000) is None


@pytest.mark.parametrize(("size", "seconds"), [(1, 1e-4), (1500, 1.5e-4), (4000, 5e-4), (6000, 8e-4)])
def test_messages_between_and_beyond_points(size: int, seconds: float) -> None:
    assert link_seconds(LINK, "all_reduce", 2, size) == pytest.approx(seconds)


INSIDE = replace(
    DEVICE,
    measured={
        **DEVICE.measured,
        "in_model": 1.5,
        "operators": {
            "gemm": [
                {"m": 300, "n": 300, "k": 300, "seconds": 7e-3},
                {"batch": 4, "m": 8, "n": 8, "k": 8, "seconds": 2e-5},
            ],
            "cast": [{"elements": 1000, "bits": 8, "seconds": 1e-5}, {"elements": 9000, "bits": 8, "seconds": 9e-5}],
            "gemm:int8": [{"m": 64, "n": 64, "k": 64, "narrowed": 1, "seconds": 4e-4}],
        },
    },
)


def test_what_was_measured_inside_a_model_counts_as_it_is() -> None:
    assert kernel_seconds(kernel("gemm", "float32", m=300, n=300, k=300, count=3), INSIDE) == pytest.approx(21e-3)
    assert kernel_seconds(kernel("gemm", "float32", batch=4, m=8, n=8, k=8), INSIDE) == pytest.approx(2e-5)


def test_other_sizes_come_from_what_was_measured_alone_if_there_is_any() -> None:
    found = kernel_seconds(kernel("gemm", "float32", m=256, n=256, k=256), INSIDE)
    assert found == pytest.approx(1.5e-3)


def test_modules_are_called_forward_alone() -> None:
    tables = {name: [[64, 64, 1e-3]] for name in ("rmsnorm", "rmsnorm_backward", "add")} | {
        "gemm": [[64, 64, 64, 1e-3]]
    }
    called = replace(DEVICE, measured={"kernels": tables, "in_model": 2.0, "module_s": 1e-4})
    norm, back, add = (
        kernel(name, "float32", rows=64, cols=64, count=3) for name in ("rmsnorm", "rmsnorm_backward", "add")
    )
    assert kernel_seconds(norm, called) == pytest.approx(3 * (2e-3 + 1e-4))
    assert kernel_seconds(back, called) == kernel_seconds(add, called) == pytest.approx(6e-3)
    assert kernel_seconds(kernel("gemm", "float32", m=64, n=64, k=64), called) == pytest.approx(2e-3)


def test_an_optimizer_was_measured_as_training_runs_it() -> None:
    slow = replace(DEVICE, measured={"kernels": {"adamw": [[1000, 1e-5]], "add": [[1, 1000, 1e-5]]}, "in_model": 2.0})
    step, add = kernel("adamw", "float32", params=1000), kernel("add", "float32", rows=1, cols=1000)
    assert kernel_seconds(step, slow) == pytest.approx(1e-5)
    assert kernel_seconds(add, slow) == pytest.approx(2e-5)


def test_kernels_without_a_table_of_their_own_lie_between_points_inside_models() -> None:
    found = kernel_seconds(kernel("cast", "float32", elements=3000, bits=8), INSIDE)
    assert found == pytest.approx(3e-5)
    assert kernel_seconds(kernel("cast", "float32", elements=3000, bits=16), INSIDE) is None


def test_a_dtype_has_a_table_of_its_own() -> None:
    assert kernel_seconds(kernel("gemm", "int8", m=64, n=64, k=64, narrowed=1), INSIDE) == pytest.approx(4e-4)
    assert kernel_seconds(kernel("gemm", "bfloat16", m=64, n=64, k=64), INSIDE) is None
