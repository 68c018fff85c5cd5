"""Tests in an order in which no worker waits for another's longest one."""

from tests.order import dealt

ITEMS = [("a", "a1"), ("a", "a2"), ("b", "b1"), ("c", "c1"), ("c", "c2"), ("c", "c3"), ("d", "d1"), ("e", "e1")]


def test_each_part_begins_with_long_files() -> None:
    assert dealt(ITEMS, {"d": 9.0, "b": 5.0, "e": 3.0}, 2) == ["d1", "a1", "a2", "c1", "b1", "e1", "c2", "c3"]


def test_everything_is_dealt_out_once() -> None:
    for workers in range(1, 10):
        for seconds in ({}, {"c": 1.0}, {"a": 2.0, "c": 1.0, "gone": 9.0}):
            assert sorted(dealt(ITEMS, seconds, workers)) == sorted(item for _, item in ITEMS)
