"""Buckets of gradients close as torch's DistributedDataParallel closes them."""

from hypothesis import given
from hypothesis import strategies as st

from simcore.buckets import assign


def test_the_first_bucket_is_small_and_a_bucket_closes_once_it_is_full() -> None:
    sizes = [("a", 4), ("b", 4), ("c", 4), ("d", 4), ("e", 1)]
    assert assign(sizes, 1, 8) == [["e"], ["d", "c"], ["b", "a"]]
    assert assign(sizes, 2, 100) == [["e", "d"], ["c", "b", "a"]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60), st.integers(1, 60))
def test_every_gradient_is_in_one_bucket_in_reverse_order(sizes: list[int], first: int, cap: int) -> None:
    named = [(str(i), size) for i, size in enumerate(sizes)]
    buckets = assign(named, first, cap)
    assert [n for bucket in buckets for n in bucket] == [n for n, _ in reversed(named)]
    size = dict(named)
    for i, bucket in enumerate(buckets[:-1]):
        held = sum(size[n] for n in bucket)
        assert held >= (cap if i else first)
        assert held - size[bucket[-1]] < (cap if i else first)
