"""Planners of precisions: what they decide, what they refuse."""

from dataclasses import replace
from pathlib import Path

import pytest

from costmodels import compute
from costmodels.casts import RELEASED, RELEASED_BY_CHANNEL
from costmodels.catalog import Catalog
from costmodels.kernels import kernel
from costmodels.libraries import Libraries
from simcore.api import check, load, run
from simcore.checks import shortfalls
from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.errors import DoesNotFit, PlanError, ScenarioError
from simcore.libraries import assumed
from simcore.plan import Compute

T4 = Catalog().device("t4")

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


def test_casts_as_released_cost_what_their_lines_say_whatever_the_device(scenario: Path) -> None:
    """Beside fitted casts on the same plan: the only tasks that differ are those with casts."""
    fitted, released = (load(scenario, [f"planner.casts={casts}"]).plan() for casts in ("fitted", "released"))
    assert fitted.decisions["precision"] == released.decisions["precision"]
    assert released.decisions["casts"] == "released"
    cost = CostModel(load(scenario).cluster())
    made = [k for task in released.tasks if isinstance(task.op, Compute) for k in task.op.kernels]
    casts = [k for k in made if k.name == "released_cast"]
    assert casts and not any(k.name in ("cast", "amax") for k in made)
    for one in casts:
        shape = dict(one.shape)
        line = RELEASED[one.dtype, {8: "int8", 16: "float16", 32: "float32"}[shape["bits"]]]
        assert cost.kernel(one, T4).seconds == pytest.approx(float(line.seconds(shape["elements"])))
    found = simulate(released, load(scenario).cluster(), cost).makespan_s
    assert released.decisions["predicted"]["iteration_s"] == pytest.approx(found, rel=0.005)
    assert found != simulate(fitted, load(scenario).cluster(), cost).makespan_s


def test_released_casts_of_weights_that_are_scaled_by_channel_have_lines_of_their_own(scenario: Path) -> None:
    plan = load(scenario, ["planner.casts=released", "planner.scaling=channel"]).plan()
    made = [k for task in plan.tasks if isinstance(task.op, Compute) for k in task.op.kernels]
    shape = {"elements": 2048 * 1000, "bits": 8}
    assert kernel("released_cast", "float32", by_channel=1, **shape) in made  # the weight of the last layer
    line = RELEASED_BY_CHANNEL["float32", "int8"]
    seconds = compute.estimate(kernel("released_cast", "float32", by_channel=1, **shape), T4).seconds
    assert seconds == pytest.approx(float(line.seconds(shape["elements"])))


def test_casts_that_were_not_released_are_refused(scenario: Path) -> None:
    with pytest.raises(PlanError, match=r"planner\.casts.*bfloat16.*which l4 has"):
        load(scenario, ["planner.casts=released", "cluster.pools.1.device=l4", "planner.precision=int8"]).plan()


def test_precisions_by_device_are_taken_at_their_word(scenario: Path) -> None:
    for planner in ("uniform_precision", "dynamic_batching"):
        asked = "planner.precision={t4: bfloat16, t5: int8}"
        with pytest.raises(PlanError) as caught:
            load(scenario, [f"planner.name={planner}", asked]).plan()
        assert [(p.field, p.allowed) for p in caught.value.problems] == [
            ("planner.precision.t4", "int8, float16, float32"),
            ("planner.precision.t5", "v100_sxm2_16, t4"),
        ]


def test_a_given_plan_is_refused_with_everything_that_graph_cluster_and_devices_lack(scenario: Path) -> None:
    loaded = load(scenario)
    plan = loaded.plan()
    chosen = {**plan.decisions["precision"]["t4"], "layer1.0.conv9": "int8", "layer1.0.conv1": "bfloat16"}
    wrong = replace(plan, decisions={**plan.decisions, "precision": {"t4": chosen, "a100": {}}})
    for act in (check, run):
        with pytest.raises(PlanError) as caught:
            act(loaded, plan=wrong)
        told = {p.field: p for p in caught.value.problems}
        assert set(told) == {f"decisions.precision.{of}" for of in ("a100", "t4.layer1.0.conv9", "t4.layer1.0.conv1")}
        assert "layer1.0.conv" in told["decisions.precision.t4.layer1.0.conv9"].advice
        assert told["decisions.precision.t4.layer1.0.conv1"].allowed == "int8, float16, float32"
    assert check(loaded, plan=plan) is plan


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


def test_uneven_batches_that_fit_nowhere_are_refused_with_those_that_do(scenario: Path) -> None:
    name = "planner.name=dynamic_batching"
    with pytest.raises(
        DoesNotFit, match=r"workload\.global_batch.*batches of at most \d+ on each v100_sxm2_16, \d+ on each t4"
    ):
        load(scenario, [name, "planner.precision=float32", "workload.batch=4096"]).plan()


def test_a_report_says_that_convolutions_do_not_run_by_the_library_of_products(scenario: Path) -> None:
    loaded = load(scenario, ["engine.libraries={gemm: trtllm}"])
    assert assumed(loaded.plan(), loaded.cluster(), Libraries(gemm="trtllm")) == {
        "gemm": "trtllm",
        "conv2d": "typical of those measured",
    }
