"""Costs while memory is slower than when they were measured: of copies and exchanges, of nothing else."""

from dataclasses import replace

import pytest

from real.checkpoint.drifting import at_speed
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
    slower = at_speed(calibrated(), 1.5)
    (device, *_), (link, *_) = slower.devices, slower.intra
    assert link is not None
    scaled = {name for name, phase in device.measured["checkpoint"].items() if phase != PHASES[name]}  # type: ignore[attr-defined]
    assert scaled == {"d2h", "checksum"}
    for name in scaled:
        phase = device.measured["checkpoint"][name]  # type: ignore[index]
        assert phase == {**PHASES[name], "s_per_B": pytest.approx(3e-10)}
    assert link.measured["all_to_all"] == {2: [[1000, pytest.approx(1.5e-4)], [10**6, pytest.approx(1.5e-3)]]}
    assert link.measured["barrier"] == TABLES["barrier"]
    assert device.measured["copy_B_per_s"] == 2e10


def test_nothing_changes_at_the_usual_speed_or_where_nothing_was_measured() -> None:
    assert at_speed(calibrated(), 1.0).devices == calibrated().devices
    unmeasured = load(ROOT / "scenarios" / "bytecheckpoint_this_machine.yaml", (), [CATALOG]).cluster()
    assert at_speed(unmeasured, 1.5).devices == unmeasured.devices
    assert at_speed(unmeasured, 1.5).intra == unmeasured.intra
