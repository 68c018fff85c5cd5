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
