"""What a client gets from a store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.catalog import Catalog
from costmodels.storage import demand, seconds

STORES = ("nvme_gen4", "nfs", "hdfs", "object_store", "dev_shm")
CATALOG = Catalog()


@given(st.sampled_from(STORES), st.integers(1, 10**10), st.integers(1, 64), st.booleans())
def test_more_streams_never_hurt_and_never_beat_the_store(name: str, size: int, streams: int, write: bool) -> None:
    store = CATALOG.store(name)
    one = seconds(store, size, 64, 1, write=write)
    many = seconds(store, size, 64, streams, write=write)
    assert many <= one
    assert many >= size / (store.write_B_per_s if write else store.read_B_per_s)


def test_by_hand() -> None:
    """8 requests over 2 streams: four turns of waiting, then both streams' rate."""
    store = CATALOG.store("nfs")
    found = demand(store, 8, 2, write=False)
    assert found.latency_s == pytest.approx(4 * store.request_s)
    assert found.cap_B_per_s == pytest.approx(2 * store.stream_read_B_per_s)
