"""What a client gets from a store, and the table of storage measurements."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.catalog import Catalog
from costmodels.fit.storage import fit
from costmodels.storage import array, demand, limits, loading_B_per_s, seconds, transfer_seconds
from costmodels.tables.storage import TABLE, prepare

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


@given(st.sampled_from(STORES), st.floats(1e6, 1e13), st.floats(1e8, 1e11), st.integers(1, 16))
def test_a_program_is_no_faster_than_store_and_itself(name: str, size: float, own: float, drives: int) -> None:
    store = array(CATALOG.store(name), drives)
    found = float(transfer_seconds(size, limits(store, write=False), own, 1e-3))
    assert found >= 1e-3 + size / min(store.read_B_per_s, own)
    slow, fast = (float(transfer_seconds(size, limits(store, write=False), r, 1e-3)) for r in (own, 2 * own))
    assert fast <= slow


def test_loading_asks_for_no_more_than_training_takes() -> None:
    """Four accelerators, 100 MB each 0.1 s of computing and a quarter of stalls: 3.2 GB/s."""
    assert loading_B_per_s(4, 100e6, 0.1, 0.25) == pytest.approx(3.2e9)


def row(**more: object) -> dict[str, object]:
    names = ("hardware", "storage", "n_gpus", "nodes", "workload", "model_or_object", "size_gb", "parallelism", "tool")
    plain: dict[str, object] = {
        **dict.fromkeys(names, np.nan),
        "concurrency": np.nan,
        "metric": "throughput",
        "notes": np.nan,
    }
    return {**plain, "source": "somebody", "value": 10.0, "unit": "GB/s", **more}


LOADER = row(
    hardware="64 emulated H100",
    n_gpus=64.0,
    workload="unet3d dataloader, batch 7, compute 0.323 s/step",
    tool="DLIO",
    value=180000.0,
    unit="MiB/s",
)
READ = row(
    hardware="Azure",
    storage="4x Gen5 (ND-H200-v5) RAID-0",
    workload="NVMe<->HBM read 1 GB",
    size_gb=1.0,
    tool="ds_io GDS",
)
LOAD = row(
    hardware="AWS g5.12xlarge", storage="AWS EBS gp3 (16000 IOPS, 1000 MiB/s)", workload="model load", size_gb=15.0
)
LOAD |= {
    "tool": "runai-model-streamer 0.6.0",
    "concurrency": "16",
    "metric": "time file->GPU (cold)",
    "value": 14.3,
    "unit": "s",
}
UNKNOWN = row(workload="DCP save before", size_gb=1600.0, tool="torch DCP", metric="time", value=280.0, unit="s")


def test_rows_become_tasks() -> None:
    found = prepare(pd.DataFrame([LOADER, READ, LOAD, UNKNOWN]))
    loader, read, load, unknown = found["task"].tolist()
    assert (loader.kind, loader.accelerators, loader.compute_s) == ("loader", 64.0, 0.323)
    assert (read.store, read.drives, read.tool, read.write) == ("azure_nvme_gen5", 4.0, "gds", False)
    assert (load.store, load.streams, load.host_B_per_s) == ("ebs_gp3", 16.0, 2e9)
    assert unknown is None
    assert found["seconds"].tolist()[1:] == pytest.approx([0.1, 14.3, 280.0])


def test_a_stated_limit_of_the_volume_counts_and_unknown_stores_are_not_covered() -> None:
    found = prepare(pd.DataFrame([LOAD, UNKNOWN]))
    said = TABLE.predict(found, CATALOG, None)
    assert said.seconds[0] >= 15e9 / (1000 * 2**20) * 0.95
    assert np.isnan(said.seconds[1]) and said.extrapolated[1]


def test_fit_finds_the_stall_of_loading() -> None:
    rows = [
        {**LOADER, "n_gpus": float(n), "value": loading_B_per_s(n, 7 * 146_600_628.0, 0.323, 0.2) / 2**20}
        for n in range(1, 11)
    ]
    found = fit(pd.DataFrame(rows), CATALOG)
    assert found["parameters"]["stall"]["unet3d"] == pytest.approx(0.2, rel=1e-3)
    assert found["error"]["loader"] < 1e-3
