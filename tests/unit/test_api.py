"""The commands as Python calls."""

from pathlib import Path

import pytest

import simcore
from simcore import api
from simcore.errors import InputError, PlanError
from tests.unit.toys import write_scenario


def test_run_returns_what_was_decided_what_happened_and_what_it_amounts_to(tmp_path: Path) -> None:
    shares: list[float] = []
    done = api.run(write_scenario(tmp_path), ["workload.iterations=2"], progress=lambda share, _: shares.append(share))
    assert done.trace.plan_digest == done.plan.digest == done.report.plan_digest
    assert done.report.metrics["iterations"] == 2
    assert done.report.backend == "sim"
    assert shares == sorted(shares)


def test_a_saved_plan_runs_again(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    first = api.plan(path)
    first.save(tmp_path / "plan.json")
    again = api.load_plan(tmp_path / "plan.json")
    assert again.digest == first.digest
    assert api.run(path, plan=again).report.plan_digest == first.digest


def test_files_that_are_no_plan_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        api.load_plan(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not text"):
        api.load_plan(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(PlanError):
        api.load_plan(tmp_path / "b.json")


def test_a_loaded_scenario_is_taken_as_it_is(tmp_path: Path) -> None:
    scenario = api.load(write_scenario(tmp_path))
    assert api.load(scenario) is scenario
    with pytest.raises(InputError):
        api.load(scenario, ["seed=1"])


def test_the_catalogue_is_a_frame() -> None:
    frame = api.catalog("devices")
    assert "h100_sxm" in set(frame["name"])
    assert frame["memory_B"].gt(0).all()
    with pytest.raises(InputError, match="devices, links, stores"):
        api.catalog("planets")


def test_a_sweep_is_a_frame(tmp_path: Path) -> None:
    frame = api.sweep(write_scenario(tmp_path), {"workload.seq_len": [64, 128]}, workers=1)
    assert frame["iteration_s"].is_monotonic_increasing


def test_names_of_the_package_are_loaded_when_asked_for() -> None:
    assert simcore.load is api._load
    assert {"load", "Plan", "Trace", "Scenario"} <= set(simcore.__all__)
    assert all(hasattr(simcore, name) for name in simcore.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = simcore.nothing  # type: ignore[attr-defined]
