"""Times of operators are shared out among their kernels so that sums are what was measured."""

import pytest

from costmodels.kernels import kernel
from real.precision.attribution import attribute

CAST, SUM, PRODUCT = (
    kernel("cast", "float32", elements=100),
    kernel("add", "float32", rows=10, cols=10),
    kernel("gemm", "int8", m=8, n=8, k=8),
)


def test_what_is_known_by_itself_leaves_the_rest_to_the_other() -> None:
    rows = [((SUM,), 2.0), ((CAST, SUM), 5.0), ((CAST, PRODUCT), 10.0)]
    found = attribute(rows, {CAST: 1.0, SUM: 1.0, PRODUCT: 1.0})
    assert found[SUM] == pytest.approx(2.0, rel=1e-2)
    assert found[CAST] == pytest.approx(3.0, rel=1e-2)
    assert found[PRODUCT] == pytest.approx(7.0, rel=1e-2)


def test_kernels_that_stand_together_keep_their_ratio() -> None:
    found = attribute([((CAST, PRODUCT), 8.0)], {CAST: 1.0, PRODUCT: 3.0})
    assert found == {CAST: pytest.approx(2.0), PRODUCT: pytest.approx(6.0)}


def test_several_launches_share_a_time() -> None:
    twice = kernel("add", "float32", rows=10, cols=10, count=2)
    assert attribute([((twice,), 4.0)], {SUM: 1.0}) == {SUM: pytest.approx(2.0)}
