"""Planners of precisions: what they decide, what they refuse."""

from pathlib import Path

import pytest

from simcore.api import load
from simcore.checks import shortfalls
from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.errors import DoesNotFit, PlanError, ScenarioError

SCENARIO = """\
name: toy
cluster:
  topology: fat_tree
  pools:
    - {device: v100_sxm2_16, nodes: 1, devices_per_node: 2, intra: nvlink2, inter: ethernet_100g}
    - {device: t4, nodes: 1, devices_per_node: 2, intra: pcie3, inter: ethernet_100g}
workload: {name: operator_training, model: resnet50, batch: 32}
planner: {name: uniform_precision, precision: {t4: int8}}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(SCENARIO)
    return path


def test_a_precision_that_a_device_lacks_becomes_the_next_wider_one_and_the_plan_says_so(scenario: Path) -> None:
    plan = load(scenario, ["planner.precision=int8"]).plan()
    assert set(plan.decisions["precision"]["v100_sxm2_16"].values()) == {"float16"}
    assert plan.decisions["widened"]["t4"] == {}
    assert plan.decisions["widened"]["v100_sxm2_16"] == {"float16": len(plan.decisions["precision"]["t4"])}


def test_a_plan_beyond_its_share_of_memory_is_refused(scenario: Path) -> None:
    with pytest.raises(DoesNotFit, match="memory of t4"):
        load(scenario, ["planner.memory.t4=10 %"]).plan()
    with pytest.raises(PlanError, match=r"planner\.memory\.h100"):
        load(scenario, ["planner.memory.h100=10 %"]).plan()
    made = load(scenario)
    plan = made.plan()
    object.__setattr__(plan, "decisions", {**plan.decisions, "memory_limit_B": {"t4": 1e9}})
    (lacking,) = shortfalls(plan, made.cluster())
    assert "t4" in lacking.field and lacking.allowed == "1.00 GB"


def test_batches_that_ranks_cannot_share(scenario: Path) -> None:
    with pytest.raises(ScenarioError):
        load(scenario, ["workload.global_batch=64"])


def test_uneven_batches_keep_their_sum_and_are_faster(scenario: Path) -> None:
    even = load(scenario, ["planner.precision=float32"])
    uneven = load(scenario, ["planner.name=dynamic_batching", "planner.precision=float32"])
    seconds = []
    for one in (even, uneven):
        plan = one.plan()
        batch = plan.decisions["batch"]
        assert 2 * sum(batch.values()) == 4 * 32
        found = simulate(plan, one.cluster(), CostModel(one.cluster())).makespan_s
        assert plan.decisions["predicted"]["iteration_s"] == pytest.approx(found, rel=0.005)
        seconds.append(found)
    assert batch["v100_sxm2_16"] > batch["t4"]
    assert seconds[1] < 0.8 * seconds[0]
