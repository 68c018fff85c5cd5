"""Costs while memory is slower than when they were measured: of copies and exchanges, of nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels import catalog
from costmodels.specs import DeviceSpec
from real.checkpoint.drifting import Slower, at_speed
from real.checkpoint.steady import Speed
from simcore.cluster import Cluster
from simcore.scenario import load
from tests.golden.reports import CATALOG, ROOT

PHASES = {name: {"start_s": 1e-3, "item_s": 1e-5, "s_per_B": 2e-10} for name in ("d2h", "checksum", "verify", "place")}
TABLES = {"all_to_all": {2: [[1000, 1e-4], [10**6, 1e-3]]}, "barrier": {2: [[0, 1e-4]]}}


def calibrated() -> Cluster:
    """Two ranks, of which everything was measured."""
    found = load(ROOT / "scenarios" / "bytecheckpoint_this_machine.yaml", (), [CATALOG]).cluster()
    devices = tuple(replace(d, measured={"checkpoint": PHASES, "copy_B_per_s": 2e10}) for d in found.devices)
    links = tuple(None if link is None else replace(link, measured=TABLES) for link in found.intra)
    return replace(found, devices=devices, intra=links)


def test_copies_and_exchanges_take_as_much_longer() -> None:
    slower = at_speed(calibrated(), Slower(copies=1.5))
    (device, *_), (link, *_) = slower.devices, slower.intra
    assert link is not None
    scaled = changed(device)
    assert set(scaled) == {"d2h"}
    for name, phase in scaled.items():
        assert phase == {**PHASES[name], "s_per_B": pytest.approx(3e-10)}
    assert link.measured["all_to_all"] == {2: [[1000, pytest.approx(1.5e-4)], [10**6, pytest.approx(1.5e-3)]]}
    assert link.measured["barrier"] == TABLES["barrier"]
    assert device.measured["copy_B_per_s"] == 2e10
    assert slower.stores == calibrated().stores


def changed(device: DeviceSpec) -> dict[str, object]:
    """Phases that cost something else than before."""
    phases: Any = device.measured["checkpoint"]
    return {name: phase for name, phase in phases.items() if phase != PHASES[name]}


def test_a_disk_is_written_and_read_as_much_slower_and_memory_changes_nothing_of_it() -> None:
    disk = catalog.store("nvme_gen4")
    kept = replace(calibrated(), stores={"disk": disk, "all": catalog.store("nfs")})
    assert at_speed(kept, Slower(copies=2.0)).stores == kept.stores
    slower = at_speed(kept, Slower(writes=2.0, reads=4.0)).stores
    assert slower["all"] == kept.stores["all"]
    assert (slower["disk"].write_B_per_s, slower["disk"].read_B_per_s) == (
        disk.write_B_per_s / 2,
        disk.read_B_per_s / 4,
    )
    assert slower["disk"].stream_write_B_per_s == disk.stream_write_B_per_s / 2
    assert slower["disk"].stream_read_B_per_s == disk.stream_read_B_per_s / 4


def test_speeds_are_compared_where_they_are_known() -> None:
    memory, disk = Speed(2.0), Speed(4.0, 1.0, 8.0)
    usual = Speed.usual([memory, memory, disk, disk])
    assert usual == Speed(3.0, 1.0, 8.0)
    assert Speed.between(memory, memory).known() == {"copy_B_per_s": 2.0}
    assert Speed.between(disk, Speed(4.0, 3.0, 8.0)) == Speed(4.0, 1.5, 8.0)
    assert Slower.than(usual, memory) == Slower(copies=1.5)
    assert Slower.than(usual, Speed(4.0, 0.5, 32.0)) == Slower(copies=0.75, writes=2.0, reads=0.25)


def test_nothing_changes_at_the_usual_speed_or_where_nothing_was_measured() -> None:
    assert at_speed(calibrated(), Slower()).devices == calibrated().devices
    unmeasured = load(ROOT / "scenarios" / "bytecheckpoint_this_machine.yaml", (), [CATALOG]).cluster()
    assert at_speed(unmeasured, Slower(copies=1.5)).devices == unmeasured.devices
    assert at_speed(unmeasured, Slower(copies=1.5)).intra == unmeasured.intra
