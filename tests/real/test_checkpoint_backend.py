"""Plans of checkpoints on ranks of this machine: the plan's own tasks as spans, what cannot run, and what a calibration finds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from costmodels import catalog
from costmodels.checkpoint import measured_seconds
from costmodels.kernels import kernel
from real.backend import RealBackend
from real.checkpoint.calibrating import joined, merged, phases, store_rates
from real.checkpoint.leaves import describe
from real.checkpoint.speed import Speed
from real.checkpoint.states import leaves, state_of
from real.checkpoint.steady import is_close, nearest
from real.checkpoint.variations import stall_s, whole_s
from real.workloads import checkpointed_training
from real.workloads.checkpointed_training import without_gaps
from simcore import api as windtunnel
from simcore.checkpoint.layouts import layout
from simcore.checkpoint.merging import merge_ranks
from simcore.checkpoint.training_states import ROLES, mesh_of, parts_of
from simcore.plan import Plan
from simcore.scenario import Scenario, load
from simcore.sim import SimBackend
from simcore.training.choice import Choice
from tests.golden.reports import CATALOG, ROOT
from tests.unit.test_checkpoint_sim import WORKLOAD

SCENARIO = ROOT / "scenarios" / "bytecheckpoint_this_machine.yaml"
TINY = (
    *("workload.model={layers: 2, hidden: 64, ffn: 176, heads: 2, vocab: 256}", "workload.seq_len=32"),
    *("planner.baselines=[]", "cluster.stores=[dev_shm]"),
)


def scenario(*changes: str) -> Scenario:
    return load(SCENARIO, (*TINY, *changes), [CATALOG])


def planned(*changes: str) -> Plan:
    return scenario(*changes).plan()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("planner.plays=training",),
        ("planner.plays=save", "workload.iterations=2"),
        ("planner.plays=reshard", "planner.resumed={dp: 1, tp: 1}"),
    ],
    ids=["training", "save", "onto one rank"],
)
def test_the_plans_own_tasks_are_the_spans(changes: tuple[str, ...]) -> None:
    """Tasks of the plan on every rank that has them, in both worlds; loads give back what was saved."""
    made = scenario(*changes)
    plan = made.plan()
    simulated = SimBackend.from_scenario(made).run(plan)
    measured = RealBackend.from_scenario(made).run(plan)
    assert measured.plan_digest == simulated.plan_digest
    assert set(np.unique(measured.iteration)) == set(np.unique(simulated.iteration))
    ids = [{plan.tasks[i].id for i in np.unique(trace.task).tolist()} for trace in (simulated, measured)]
    assert ids[0] - ids[1] <= {"barrier/meet"} | {t for t in ids[0] if t.startswith(("copy/", "place/"))}
    assert ids[1] <= ids[0]
    assert whole_s([measured]) > 0
    if "planner.plays=save" in changes:
        assert 0 < stall_s(plan, [measured]) < whole_s([measured])
        assert measured.nbytes.sum() >= plan.decisions["checkpoint"]["bytes"]


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        (("planner.system=dcp",), {"planner.system"}),
        (("cluster.stores=[hdfs]", "workload.loader=1 MB"), {"planner.store", "workload.loader"}),
        (("planner.tp=2", "planner.resumed={}"), {"planner.tp", "planner.zero"}),
        (("planner.zero=3",), {"planner.rows", "planner.overlap"}),
        (("planner.zero=2", "planner.overlap=false"), {"planner.zero"}),
    ],
)
def test_what_cannot_run_is_said_at_once(changes: tuple[str, ...], fields: set[str]) -> None:
    assert {p.field for p in checkpointed_training.lacking(planned(*changes))} == fields


def test_a_full_store_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = planned("planner.plays=save")
    decided: Mapping[str, Any] = {**plan.decisions, "checkpoint": {**plan.decisions["checkpoint"], "bytes": 10**18}}
    monkeypatch.setattr(checkpointed_training, "STORES", {"dev_shm": tmp_path})
    assert not checkpointed_training.lacking(plan)
    found = checkpointed_training.lacking(replace(plan, decisions=dict(decided)))
    assert [p.field for p in found] == ["planner.store"]
    assert "GB" in found[0].given


@pytest.mark.parametrize(
    "choice",
    [
        Choice(dp=3, zero=1),
        Choice(dp=2, tp=2, pp=2, zero=1, master_weights=True),
        Choice(dp=4, zero=3),
        Choice(dp=2, tp=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("flat", [True, False])
def test_made_states_are_those_that_plans_are_made_of(choice: Choice, flat: bool) -> None:
    """All ranks' states taken apart as a save does it, beside the tables that the planner works on."""
    mesh = mesh_of(choice)
    held = [describe(state_of(WORKLOAD, choice, r, flat=flat), r, ()).held for r in range(mesh.n_ranks)]
    expected = np.zeros(mesh.n_ranks, dtype=np.int64)
    for part in parts_of(WORKLOAD, choice, flat=flat):
        expected += layout(part.tensors, part.placements, mesh).held_B()
    np.testing.assert_array_equal(merge_ranks(held).held_B(), expected)


def test_a_made_state_is_filled_by_name() -> None:
    state = state_of(WORKLOAD, Choice(dp=2, zero=1), 0, flat=True)
    assert set(state) == set(ROLES)
    for _, memory in leaves(state):
        assert memory.numel() == 0 or torch.equal(memory, torch.full_like(memory, float(memory.flatten()[0])))


def rows(checksum_B_per_s: float) -> list[dict[str, Any]]:
    """What a machine with round numbers would say: 2 GB/s to write, 4 GB/s to read, 5 us an item, 1 ms to begin."""
    found = []
    for items, nbytes in ((6, 10**8), (6, 10**7), (200, 10**7)):
        save = {"agree": 1e-3 + 5e-6 * items, "copy": nbytes / 8e9, "serialise": nbytes / checksum_B_per_s}
        save |= {
            "upload": 2e-4 + nbytes / 2e9,
            "system": nbytes / 4e9,
            "barrier": 1e-3,
            "barrier/meet": 1e-4,
            "commit": 9e-4,
        }
        read = {"planning": 2e-3 + 5e-6 * 3 * items, "read": nbytes / 4e9, "deserialise": nbytes / checksum_B_per_s}
        sizes = {
            "items": items,
            "shards": 2 * items,
            "nbytes": nbytes,
            "read_B": nbytes,
            "received_B": 0,
            "first_agree": 2e-3,
        }
        found.append({"what": "save", **sizes, "phases": save, "seconds": sum(save.values())})
        found.append({"what": "load", **sizes, "phases": read, "seconds": sum(read.values())})
        columns = sum(read.values()) + nbytes / 1e10
        found.append({"what": "columns", **sizes, "phases": read, "seconds": columns})
    return found


def test_costs_are_lines_through_what_was_measured() -> None:
    found = phases({"memory": rows(1e10), "disk": rows(1e10)})
    device = replace(catalog.device("this_machine", [CATALOG]), measured={"checkpoint": found})
    for name, shape, seconds in (
        ("agree", {"items": 1000, "messages": 1}, 1e-3 + 5e-3),
        ("d2h", {"elements": 8 * 10**9}, 1.0),
        ("checksum", {"elements": 10**10}, 1.0),
        ("verify", {"elements": 10**10}, 1.0),
        ("place", {"elements": 10**10}, 1.0),
        ("read_plan", {"items": 1000, "messages": 1}, 7e-3),
    ):
        known = measured_seconds(kernel(f"checkpoint/{name}", "float32", **shape), device)
        assert known == pytest.approx(seconds, rel=0.01), name
    assert measured_seconds(kernel("checkpoint/pickle", "float32", elements=1), device) is None
    rates = store_rates(rows(1e10), rows(1e10), 2)
    assert rates["write_B_per_s"] == pytest.approx(2 * rates["stream_write_B_per_s"]) == pytest.approx(4e9, rel=0.01)
    assert rates["stream_read_B_per_s"] == pytest.approx(4e9, rel=0.01)
    assert rates["commit_s"] == pytest.approx(9e-4, rel=0.01)


def test_a_core_does_one_thing_at_a_time(tmp_path: Path) -> None:
    """A rank that is a core of its host hashes, writes and reads in turn, and copies nothing for a synchronous save."""
    plan = planned("planner.plays=save")
    after = {t.id: t.after for t in plan.tasks}
    assert after["serialise/optimizer/writers0"] == ("upload/model/writers0", "system/model/writers0")
    assert after["commit"] == ("barrier",)
    sync = planned("planner.plays=save", "planner.system=windtunnel_sync")
    assert not [t.id for t in sync.tasks if t.id.startswith("copy/")]
    report = windtunnel.run(scenario("planner.plays=save")).report
    assert report.metrics["iteration_s"] == pytest.approx(plan.decisions["predicted"]["save_s"], rel=1e-3)


def speed(copies: float = 2e10) -> dict[str, float]:
    return {"copy_B_per_s": copies}


def test_a_run_that_was_disturbed_does_not_count() -> None:
    """Of four runs the two with memory as usual, in each of them the rank that the other one waited for."""
    quick, slow = {"copy": 1.0, "barrier/meet": 0.5, "barrier": 0.1}, {"copy": 1.4, "barrier/meet": 0.1, "barrier": 0.0}
    disturbed = {"copy": 9.0, "barrier/meet": 0.1, "barrier": 0.1}
    sizes = {"what": "save", "items": 1, "shards": 2, "nbytes": 8, "read_B": 8, "received_B": 0, "first_agree": 2.0}
    kinds = ((quick, slow), (disturbed, slow), (quick, slow), (disturbed, slow))
    copies = (2.0e10, 1.2e10, 2.0e10, 3.0e10)
    ranks = [
        {
            **sizes,
            "runs": [
                {"seconds": sum(k[r].values()), "phases": k[r], "speed": speed(copy)}
                for k, copy in zip(kinds, copies, strict=True)
            ],
        }
        for r in range(2)
    ]
    found = joined(ranks, Speed(**speed()))
    assert found["phases"] == {"copy": 1.4, "barrier/meet": 0.1, "barrier": 0.1, "commit": 0.0}
    assert found["seconds"] == pytest.approx(1.6)


@pytest.mark.parametrize(("what", "factor"), [("save", 2.0), ("load", 4.0)])
def test_runs_in_memory_are_put_down_as_at_the_usual_speed(what: str, factor: float) -> None:
    """Copies took twice as long, saves twice, and loads four times."""
    phases = {"copy": 1.0, "planning": 2.0, "read": 4.0, "barrier": 0.0, "barrier/meet": 0.0, "commit": 0.0}
    sizes = {"what": what, "items": 1, "shards": 2, "nbytes": 8, "read_B": 8, "received_B": 0, "first_agree": 0.0}
    names = ("copy_B_per_s", "memory_save_B_per_s", "memory_load_B_per_s")
    slow, usual = (dict(zip(names, rates, strict=True)) for rates in ((1e10, 1e9, 1e9), (2e10, 2e9, 4e9)))
    found = joined([{**sizes, "runs": [{"seconds": 9.0, "phases": phases, "speed": slow}]}], Speed(**usual))
    assert found["phases"] == {**{p: seconds / factor for p, seconds in phases.items()}, "copy": 0.5}
    assert found["seconds"] == pytest.approx(8.0 / factor + 0.5)
    found = joined([{**sizes, "runs": [{"seconds": 9.0, "phases": phases, "speed": usual}]}], Speed(**usual))
    assert (found["phases"], found["seconds"]) == (phases, 9.0)


@pytest.mark.parametrize(("what", "phase", "factor"), [("save", "upload", 2.0), ("load", "read", 4.0)])
def test_of_runs_on_a_disk_writing_and_reading_are_put_down_at_its_usual_speed(
    what: str, phase: str, factor: float
) -> None:
    phases = {"planning": 2.0, phase: 4.0, "barrier": 0.0, "barrier/meet": 0.0, "commit": 0.0}
    sizes = {"what": what, "items": 1, "shards": 2, "nbytes": 8, "read_B": 8, "received_B": 0, "first_agree": 0.0}
    slow, usual = (
        {"copy_B_per_s": 1e10, "disk_write_B_per_s": write, "disk_read_B_per_s": read}
        for write, read in ((1e9, 1e9), (2e9, 4e9))
    )
    found = joined([{**sizes, "runs": [{"seconds": 7.0, "phases": phases, "speed": slow}]}], Speed(**usual))
    assert found["phases"] == {**phases, phase: pytest.approx(4.0 / factor)}
    assert found["seconds"] == pytest.approx(3.0 + 4.0 / factor)


def test_launches_are_one_measurement() -> None:
    """Runs of all of them by row, and the median of what only the first run of each shows."""
    rows = [{"/dev/shm": [{"what": "save", "first_agree": first, "runs": [first]}]} for first in (1.0, 5.0, 2.0)]
    assert merged(rows) == {"/dev/shm": [{"what": "save", "first_agree": 2.0, "runs": [1.0, 5.0, 2.0]}]}


def test_runs_beside_unusual_memory_do_not_count() -> None:
    """Those within a tenth or so of the usual come first, then the nearest; in the order in which they were."""
    assert nearest([9.0, 15.0, 10.5, 10.0], 10.0, 3) == [0, 2, 3]
    assert nearest([15.0, 13.0, 10.5], 10.0, 2) == [1, 2]
    assert is_close(8.9, 10.0)
    assert not is_close(8.0, 10.0)


def test_what_lies_between_two_loads_is_no_part_of_them() -> None:
    """Rank 1 ends last; the second load begins in the trace where the first has ended on both."""
    ranks = [
        {"bounds": [(0.0, 2.0), (10.0, 12.0)], "pieces": [("read", 0, 0.5, 2.0, 8), ("read", 1, 10.5, 12.0, 8)]},
        {"bounds": [(0.1, 3.0), (10.2, 11.0)], "pieces": [("read", -1, -2.0, -1.0, 8), ("read", 1, 10.2, 11.0, 8)]},
    ]
    first, second = without_gaps(ranks)
    assert first["bounds"] == [(0.0, 2.0), (3.0, 5.0)]
    assert first["pieces"] == [("read", 0, 0.5, 2.0, 8), ("read", 1, 3.5, 5.0, 8)]
    assert second["bounds"][1] == pytest.approx((3.2, 4.0))
    assert second["pieces"][0] == ("read", -1, -2.0, -1.0, 8)
