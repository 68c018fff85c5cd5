"""Bytes by rank beside the plans of real saves and loads; phases of a save, and what they cost training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels import catalog, model_config
from costmodels.checkpoint import phase_seconds
from costmodels.transformer import TransformerShape
from simcore import api as windtunnel
from simcore.checkpoint.jobs import CheckpointJob
from simcore.checkpoint.layouts import layout
from simcore.checkpoint.loading import read_plan
from simcore.checkpoint.prediction import streams_and_part_B
from simcore.checkpoint.saving import lowest_rank_plan, save_plan
from simcore.checkpoint.training_states import ROLES, mesh_of, parts_of
from simcore.checkpoint.writers import read_B, writers_of, written
from simcore.errors import PlanError
from simcore.planners import bytecheckpoint
from simcore.scenario import Scenario
from simcore.training.choice import Choice
from simcore.workloads.transformer_training import TransformerTraining

SHAPE = TransformerShape(layers=4, hidden=64, ffn=192, heads=4, kv_heads=2, head_dim=16, vocab=512, max_len=32)
WORKLOAD = TransformerTraining(model=SHAPE, seq_len=32, global_batch=48, precision="bfloat16")
CHOICES = [
    Choice(dp=3),
    Choice(dp=3, zero=1, master_weights=True),
    Choice(dp=2, tp=2, pp=2, zero=1, master_weights=True),
    Choice(dp=4, zero=3),
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("balance", ["balanced", "first_group"])
def test_ranks_write_what_the_plan_of_all_ranks_says(choice: Choice, balance: str) -> None:
    """Of the checkpoint's bytes exactly; of the busiest rank up to what tensor parallel ranks have copies of."""
    found = written(WORKLOAD, choice, balance)  # type: ignore[arg-type]
    planned = np.zeros((mesh_of(choice).n_ranks, len(ROLES)), dtype=np.int64)
    for part in parts_of(WORKLOAD, choice):
        shards = layout(part.tensors, part.placements, mesh_of(choice))
        plan = save_plan(shards) if balance == "balanced" else lowest_rank_plan(shards)
        planned[:, ROLES.index(part.kind.role)] += plan.written_B
    assert found.total_B == pytest.approx(planned.sum(), rel=0.01)
    busiest = found.by_role.sum(axis=2).max()
    assert busiest == pytest.approx(planned.sum(axis=1).max(), rel=0.05)


SAME_STATES = [(a, b) for a in CHOICES[1:] for b in CHOICES[1:] if (a.zero == 3) == (b.zero == 3)]


@pytest.mark.parametrize(("saved", "wanted"), SAME_STATES, ids=str)
def test_ranks_read_what_the_plan_of_all_ranks_says(saved: Choice, wanted: Choice) -> None:
    read, _ = read_B(WORKLOAD, saved, wanted)
    planned = np.zeros(len(ROLES), dtype=np.int64)
    mesh = mesh_of(wanted)
    for part, target in zip(parts_of(WORKLOAD, saved), parts_of(WORKLOAD, wanted), strict=True):
        from_ = save_plan(layout(part.tensors, part.placements, mesh_of(saved))).shards
        plan = read_plan(from_, layout(target.tensors, target.placements, mesh), mesh.dp_groups())
        planned[ROLES.index(part.kind.role)] += plan.read_B.sum()
    mine = read.sum(axis=0) * mesh.dp * mesh.tp
    np.testing.assert_allclose(mine, planned, rtol=0.1)


def test_groups_of_writers_are_all_ranks_once_and_never_smaller_than_they_write() -> None:
    model = model_config.named("tgpt_70b")
    workload = TransformerTraining(model=model, seq_len=4096, global_batch=600, precision="bfloat16")
    choice = Choice(dp=75, tp=4, pp=8, zero=1, master_weights=True)
    found = written(workload, choice)
    groups = writers_of(found)
    ranks = np.sort(np.concatenate([g.ranks for g in groups]))
    np.testing.assert_array_equal(ranks, np.arange(2400))
    upper = sum(len(g.ranks) * sum(g.role_B) for g in groups)
    assert found.total_B <= upper < 1.15 * found.total_B
    assert max(sum(g.role_B) for g in groups) >= found.by_role.sum(axis=2).max()
    assert found.total_B == pytest.approx(14 * 71.75e9, rel=0.01)


def test_the_first_replica_writes_all_of_what_replicas_hold() -> None:
    choice = Choice(dp=8, tp=2, pp=2, zero=1, master_weights=True)
    balanced, first = (written(WORKLOAD, choice, b) for b in ("balanced", "first_group"))  # type: ignore[arg-type]
    assert (first.by_role[:, 1:, 0] == 0).all()
    assert first.total_B == balanced.total_B
    assert first.imbalance > 2 > balanced.imbalance


def test_whole_shards_are_balanced_less_well_than_cut_ones() -> None:
    model = model_config.named("tgpt_70b")
    workload = TransformerTraining(model=model, seq_len=4096, global_batch=600, precision="bfloat16")
    choice = Choice(dp=75, tp=4, pp=8, zero=1, master_weights=True)
    assert written(workload, choice).imbalance < written(workload, choice, largest_B=None).imbalance


def test_without_reading_once_a_replicated_model_is_read_by_every_replica() -> None:
    choice = Choice(dp=8, zero=1, master_weights=True)
    once, received = read_B(WORKLOAD, choice, choice)
    each, nothing = read_B(WORKLOAD, choice, choice, once=False)
    assert each[0, 0] == pytest.approx(8 * once[0, 0], rel=0.01)
    assert each[0, 1] == once[0, 1]
    assert received[0, 0] > 0 == received[0, 1]
    assert not nothing.any()
    _, moved = read_B(WORKLOAD, choice, replace(choice, dp=4))
    assert moved[0, 1] > 0


def scenario(
    tmp_path: Path, *, planner: dict[str, Any], workload: dict[str, Any] | None = None, **cluster: Any
) -> Scenario:
    """A small GPT on two hosts of four A100, by default on their own drives."""
    document = {
        "name": "checkpoints",
        "cluster": {
            "topology": "fat_tree",
            "device": "a100_sxm_80",
            "nodes": 2,
            "devices_per_node": 4,
            "intra": "nvlink3",
            "inter": "roce_100",
            "stores": ["nvme_gen4"],
            **cluster,
        },
        "workload": {
            "name": "checkpointed_training",
            "model": {"layers": 4, "hidden": 1024, "ffn": 4096, "heads": 8, "vocab": 4096, "max_len": 2048},
            "seq_len": 2048,
            "global_batch": 64,
            **(workload or {}),
        },
        "planner": {"name": "bytecheckpoint", "zero": 1, "detail": "chunk", **planner},
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(json.dumps(document))
    return windtunnel.load(path)


def decided(tmp_path: Path, **given: Any) -> dict[str, Any]:
    return dict(scenario(tmp_path, **given).plan().decisions)


def job(tmp_path: Path, **given: Any) -> tuple[CheckpointJob, Scenario]:
    made = scenario(tmp_path, **given)
    params = made.sections["planner"].params
    assert isinstance(params, bytecheckpoint.Params)
    return bytecheckpoint.job_of(made.workload(), made.cluster(), params), made


def test_the_stall_of_an_asynchronous_save_is_the_copy_alone(tmp_path: Path) -> None:
    made, found = job(tmp_path, planner={})
    predicted = found.plan().decisions["predicted"]
    device = found.cluster().device(0)
    busiest = made.written.by_role.reshape(-1, len(ROLES)).max(axis=0)
    copied = sum(float(phase_seconds(device, "d2h", size)) for size in busiest)
    assert predicted["stall_s"] == pytest.approx(copied, rel=0.01)
    assert predicted["first_stall_s"] > predicted["stall_s"] + 0.5  # the optimizer's state is named once


def test_a_synchronous_save_stalls_to_its_end_and_plans_each_time(tmp_path: Path) -> None:
    predicted = decided(tmp_path, planner={"system": "megatron_parallel"})["predicted"]
    assert predicted["stall_s"] == predicted["save_s"] == predicted["first_stall_s"]
    assert predicted["cost_s"] == pytest.approx(predicted["stall_s"], rel=0.01)


def test_a_window_is_its_iterations_and_the_stall(tmp_path: Path) -> None:
    """Uploads to drives of the host meet nobody's traffic."""
    found = scenario(tmp_path, planner={})
    made = found.plan()
    predicted = made.decisions["predicted"]
    count = predicted["iterations_beside"]
    assert count * predicted["iteration_s"] > predicted["save_s"]
    window_s = windtunnel.run(found, plan=made).trace.makespan_s
    assert window_s == pytest.approx(count * predicted["iteration_s"] + predicted["stall_s"], rel=0.002)
    assert made.workload["tokens_per_iteration"] == count * 64 * 2048


def test_a_plan_too_long_to_list_says_that_the_save_is_not_all_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"stores": ["hdfs"]}
    assert decided(tmp_path, planner={}, **slow)["predicted"]["whole_save_beside"] is True
    monkeypatch.setattr(bytecheckpoint, "MOST_TASKS", 1)
    predicted = decided(tmp_path, planner={}, **slow)["predicted"]
    assert predicted["whole_save_beside"] is False
    assert predicted["cost_s"] == predicted["stall_s"]


def test_uploads_hold_up_training_that_needs_the_same_ports(tmp_path: Path) -> None:
    """Reducing gradients over ports of 1 Gbit/s, while files go out through them."""
    shared = {"stores": ["nfs"], "inter": "ethernet_1g"}
    predicted = decided(tmp_path, planner={}, **shared)["predicted"]
    assert predicted["cost_s"] > 2 * predicted["stall_s"]


def test_planning_is_linear_in_ranks_when_flat_and_less_in_a_tree(tmp_path: Path) -> None:
    made, _ = job(tmp_path, planner={})
    flat = replace(made, system=replace(made.system, tree=False))

    def messages(of: CheckpointJob, replicas: int) -> int:
        return replace(of, choice=replace(of.choice, dp=replicas)).messages

    assert messages(flat, 8000) == pytest.approx(8 * messages(flat, 1000), rel=0.01)
    assert messages(made, 8000) < 2 * messages(made, 1000) < messages(flat, 1000) / 4


def test_a_ranks_files_shrink_with_the_replicas(tmp_path: Path) -> None:
    made, _ = job(tmp_path, planner={})
    more = replace(made, choice=replace(made.choice, dp=64))
    few, many = (j.written.by_role.reshape(-1, len(ROLES)).max(axis=0) for j in (made, more))
    assert few[1] == pytest.approx(8 * many[1], rel=0.01)
    assert few[0] > 2 * many[0]
    assert many[0] == 2 * 4096 * 1024  # one tensor, which is not cut


def test_all_replicas_save_and_load_faster_than_the_first(tmp_path: Path) -> None:
    names = ["first_dp_group", "megatron", "megatron_parallel", "ucp"]
    found = decided(tmp_path, planner={"baselines": names}, stores=["nfs"])
    own, others = found["predicted"], {n: found[f"baseline {n}"] for n in names}
    assert own["save_s"] < others["first_dp_group"]["save_s"]
    assert own["load_s"] < others["megatron"]["load_s"]
    assert others["megatron_parallel"]["save_s"] < others["megatron"]["save_s"]
    assert others["ucp"]["reshard_s"] > 1.5 * others["megatron"]["reshard_s"]
    assert found["ettr"]["expected"] > max(o["ettr"] for o in others.values())


def test_loaders_that_do_not_prefetch_keep_training_waiting(tmp_path: Path) -> None:
    """1 GB takes about 8 s to collect (ByteCheckpoint, section 2)."""
    loader = {"loader": "1 GB"}
    found = decided(tmp_path, planner={"baselines": ["dcp_async"]}, workload=loader)
    without = decided(tmp_path, planner={"baselines": ["dcp_async"]})
    assert found["predicted"]["stall_s"] == without["predicted"]["stall_s"]
    more = found["baseline dcp_async"]["stall_s"] - without["baseline dcp_async"]["stall_s"]
    assert more == pytest.approx(8.0, rel=0.05)
    assert found["predicted"]["reshard_s"] > found["predicted"]["load_s"] + 8 * 8  # one rank deals out eight buffers


def test_the_interval_is_given_or_the_best(tmp_path: Path) -> None:
    found = decided(tmp_path, planner={}, workload={"mtbf": "2000 hours"})
    assert found["checkpoint"]["every"] == found["ettr"]["best_every"] > 1
    given = decided(tmp_path, planner={}, workload={"mtbf": "2000 hours", "every": 1000})
    assert given["checkpoint"]["every"] == 1000
    assert given["ettr"]["expected"] < found["ettr"]["expected"]
    assert abs(found["ettr"]["measured"] - found["ettr"]["expected"]) < 5 * found["ettr"]["error"] + 1e-5


def test_the_same_scenario_makes_the_same_plan(tmp_path: Path) -> None:
    first, again = (scenario(tmp_path, planner={"streams": 2}).plan() for _ in range(2))
    assert first.digest == again.digest
    assert first.decisions["checkpoint"]["streams"] == 2


def test_what_does_not_suit_is_said_at_once(tmp_path: Path) -> None:
    found = scenario(tmp_path, planner={"tp": 3}, stores=[])
    with pytest.raises(PlanError) as caught:
        found.plan()
    assert {"planner.dp", "planner.tp", "cluster.stores"} <= {p.field for p in caught.value.problems}
    with pytest.raises(PlanError) as caught:
        scenario(tmp_path, planner={}, stores=["nfs", "hdfs"]).plan()
    assert "hdfs" in caught.value.problems[0].allowed
    with pytest.raises(PlanError) as caught:
        scenario(tmp_path, planner={"resumed": {"pp": 3}}).plan()
    assert [p.field for p in caught.value.problems] == ["planner.resumed.pp", "planner.resumed"]


def test_another_workload_is_refused(tmp_path: Path) -> None:
    made = scenario(tmp_path, planner={})
    params = made.sections["planner"].params
    assert isinstance(params, bytecheckpoint.Params)
    with pytest.raises(PlanError):
        bytecheckpoint.plan(WORKLOAD, made.cluster(), made.cost(), params)


def test_streams_are_as_many_as_help() -> None:
    hdfs = catalog.store("hdfs")
    alone, _ = streams_and_part_B(hdfs, [20 * 10**9], 1, 12e9)
    many, _ = streams_and_part_B(hdfs, [20 * 10**9], 10_000, 12e9)
    assert alone == 16
    assert many == 1  # the store's share of a writer is less than a stream
