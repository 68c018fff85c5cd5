"""Costs while memory and disk are slower than when they were measured."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels import catalog
from costmodels.specs import DeviceSpec
from real.checkpoint.drifting import Slower, at_speed
from real.checkpoint.speed import Speed
from simcore.cluster import Cluster
from simcore.scenario import load
from tests.golden.reports import CATALOG, ROOT

PHASE = {"start_s": 1e-3, "item_s": 1e-5, "s_per_B": 2e-10}
PHASES = dict.fromkeys(("d2h", "checksum", "system", "verify", "place"), PHASE)
TABLES = {"all_to_all": {2: [[1000, 1e-4], [10**6, 1e-3]]}, "barrier": {2: [[0, 1e-4]]}}


def calibrated() -> Cluster:
    """Two ranks, of which everything was measured."""
    found = load(ROOT / "scenarios" / "bytecheckpoint_this_machine.yaml", (), [CATALOG]).cluster()
    devices = tuple(replace(d, measured={"checkpoint": PHASES, "copy_B_per_s": 2e10}) for d in found.devices)
    links = tuple(None if link is None else replace(link, measured=TABLES) for link in found.intra)
    return replace(found, devices=devices, intra=links)


def times(phase: dict[str, float], factor: float) -> dict[str, object]:
    return {name: pytest.approx(seconds * factor) for name, seconds in phase.items()}


def test_copies_take_as_much_longer_for_each_byte() -> None:
    slower = at_speed(calibrated(), Slower(copies=1.5))
    assert changed(slower.devices[0]) == {"d2h": {**PHASE, "s_per_B": pytest.approx(3e-10)}}
    assert slower.devices[0].measured["copy_B_per_s"] == 2e10
    assert slower.intra == calibrated().intra
    assert slower.stores == calibrated().stores


def test_saves_and_loads_take_as_much_longer_as_those_beside_them() -> None:
    slower = at_speed(calibrated(), Slower(saves=2.0, loads=3.0))
    double, triple = times(PHASE, 2.0), times(PHASE, 3.0)
    assert changed(slower.devices[0]) == {"checksum": double, "system": double, "verify": triple, "place": triple}
    (link, *_) = slower.intra
    assert link is not None
    assert link.measured["all_to_all"] == {2: [[1000, pytest.approx(3e-4)], [10**6, pytest.approx(3e-3)]]}
    assert link.measured["barrier"] == TABLES["barrier"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_store_in_which_they_are_is_as_much_slower(in_memory: bool) -> None:
    stores = {True: catalog.store("dev_shm"), False: catalog.store("nvme_gen4")}
    kept = replace(
        calibrated(), stores={"one": stores[in_memory], "other": stores[not in_memory], "all": catalog.store("nfs")}
    )
    assert at_speed(kept, Slower(copies=2.0)).stores == kept.stores
    found = at_speed(kept, Slower(saves=2.0, loads=4.0, in_memory=in_memory)).stores
    before, after = kept.stores["one"], found["one"]
    assert (found["other"], found["all"]) == (kept.stores["other"], kept.stores["all"])
    assert (after.write_B_per_s, after.read_B_per_s) == (before.write_B_per_s / 2, before.read_B_per_s / 4)
    assert after.stream_write_B_per_s == before.stream_write_B_per_s / 2
    assert after.stream_read_B_per_s == before.stream_read_B_per_s / 4
    commit_s, open_s = (before.commit_s * 2, before.open_s * 4) if in_memory else (before.commit_s, before.open_s)
    assert (after.commit_s, after.open_s) == (commit_s, open_s)


def test_what_the_host_does_is_as_it_was_where_checkpoints_are_on_a_disk() -> None:
    found = at_speed(calibrated(), Slower(saves=2.0, loads=4.0, in_memory=False))
    assert (found.devices, found.intra) == (calibrated().devices, calibrated().intra)


def changed(device: DeviceSpec) -> dict[str, object]:
    """Phases that cost something else than before."""
    phases: Any = device.measured["checkpoint"]
    return {name: phase for name, phase in phases.items() if phase != PHASES[name]}


def test_speeds_are_compared_where_they_are_known() -> None:
    memory, disk = Speed(2.0, 6.0, 8.0), Speed(4.0, disk_write_B_per_s=1.0, disk_read_B_per_s=8.0)
    usual = Speed.usual([memory, memory, disk, disk])
    assert usual == Speed(3.0, 6.0, 8.0, 1.0, 8.0)
    assert Speed.between(memory, memory).known() == {
        "copy_B_per_s": 2.0,
        "memory_save_B_per_s": 6.0,
        "memory_load_B_per_s": 8.0,
    }
    assert Speed.between(disk, replace(disk, disk_write_B_per_s=3.0)) == replace(disk, disk_write_B_per_s=1.5)
    assert Slower.than(usual, Speed(2.0, 3.0, 32.0)) == Slower(copies=1.5, saves=2.0, loads=0.25)
    assert Slower.than(usual, replace(disk, disk_read_B_per_s=4.0)) == Slower(0.75, 1.0, 2.0, in_memory=False)
    assert Slower.than(Speed(3.0), memory) == Slower(copies=1.5)


def test_nothing_changes_at_the_usual_speed_or_where_nothing_was_measured() -> None:
    assert at_speed(calibrated(), Slower()).devices == calibrated().devices
    unmeasured = load(ROOT / "scenarios" / "bytecheckpoint_this_machine.yaml", (), [CATALOG]).cluster()
    slow = at_speed(unmeasured, Slower(copies=1.5, saves=1.5, loads=1.5))
    assert (slow.devices, slow.intra) == (unmeasured.devices, unmeasured.intra)
