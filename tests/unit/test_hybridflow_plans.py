"""Plans of RLHF: they fit or are refused with advice, the engine takes as long as the planner says, and they can be described."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from costmodels import generation_eager
from costmodels.catalog import Catalog
from costmodels.transformer import TransformerShape, total_elements
from simcore.checks import check, problems_of
from simcore.cluster import Cluster
from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.errors import DoesNotFit, PlanError
from simcore.hybridflow.call_tasks import update_tasks
from simcore.hybridflow.describe import describe
from simcore.hybridflow.model_costs import Limits, RoleCosts, Strategy
from simcore.hybridflow.verl import verl_config
from simcore.hybridflow.zones import zones_of
from simcore.plan import Collective, Compute, Plan
from simcore.planners import deepspeed_chat, hybridflow, nemo_aligner, openrlhf, placed
from simcore.reporting.rlhf_view import description_view
from simcore.reporting.text import as_text
from simcore.topologies import rail_optimised
from simcore.training.choice import Choice
from simcore.workloads import rlhf
from simcore.workloads.transformer_training import TransformerTraining

TAIL = {"distribution": "lognormal", "mean": 200, "sigma": 1.0, "longest": 1024}


def workload(**fields: object) -> rlhf.Rlhf:
    given = {
        "algorithm": "ppo",
        "model": "llama3_2_1b",
        "prompts": 64,
        "prompt_len": 256,
        "response_len": 256,
        "updates": 2,
        **fields,
    }
    return rlhf.build(rlhf.Params.model_validate(given), np.random.default_rng(0), Path())


def cluster(ranks: int = 8, *pools: dict[str, object]) -> Cluster:
    if pools:
        return rail_optimised.build(rail_optimised.Params.model_validate({"pools": list(pools)}), Catalog([]))
    params = rail_optimised.Params(
        device="a100_sxm_80",
        nodes=max(ranks // 8, 1),
        devices_per_node=min(ranks, 8),
        intra="nvlink3",
        inter="infiniband_hdr",
    )
    return rail_optimised.build(params, Catalog([]))


def planned(planner: ModuleType, work: rlhf.Rlhf, on: Cluster, **params: object) -> Plan:
    made: Plan = planner.plan(work, on, CostModel(on), planner.Params.model_validate(params))
    return made


@pytest.mark.parametrize("algorithm", ["ppo", "remax", "safe_rlhf", "grpo"])
def test_the_engine_takes_what_the_planner_says(algorithm: str) -> None:
    on = cluster()
    made = planned(hybridflow, workload(algorithm=algorithm), on)
    check(made, on)
    took = simulate(made, on, CostModel(on), iterations=1).makespan_s
    assert took == pytest.approx(made.decisions["predicted"]["iteration_s"], rel=0.06)


@pytest.mark.parametrize(
    "placement", ["colocate", "split", "standalone", [["actor"], ["critic", "reference", "reward"]]]
)
def test_given_placements(placement: object) -> None:
    on = cluster()
    made = planned(placed, workload(), on, placement=placement)
    check(made, on)
    pools = made.decisions["pools"]
    number = {"colocate": 1, "split": 2, "standalone": 4}.get(placement, 2) if isinstance(placement, str) else 2
    assert len(pools) == number
    ranks = [r for p in pools for r in range(p["first_rank"], p["first_rank"] + p["ranks"])]
    assert sorted(ranks) == list(range(8))
    took = simulate(made, on, CostModel(on), iterations=1).makespan_s
    assert took == pytest.approx(made.decisions["predicted"]["iteration_s"], rel=0.08)


def test_the_best_is_not_worse_than_any_placement() -> None:
    on, work = cluster(), workload(response_len=TAIL)
    best = planned(hybridflow, work, on).decisions["predicted"]["iteration_s"]
    for placement in ("colocate", "split", "standalone"):
        assert planned(placed, work, on, placement=placement).decisions["predicted"]["iteration_s"] >= best


@pytest.mark.parametrize("planner", [deepspeed_chat, openrlhf, nemo_aligner])
def test_baselines_are_plans_that_run(planner: ModuleType) -> None:
    on = cluster()
    made = planned(planner, workload(), on)
    assert not problems_of(made, on)
    took = simulate(made, on, CostModel(on), iterations=1).makespan_s
    assert took == pytest.approx(made.decisions["predicted"]["iteration_s"], rel=0.1)


def test_weights_of_openrlhf_go_over_the_network() -> None:
    made = planned(openrlhf, workload(), cluster(16))
    op = next(t.op for t in made.tasks if t.id == "generate/weights")
    assert isinstance(op, Collective)
    assert op.kind == "broadcast"
    assert "rollout" in made.decisions["pools"][0]["models"] or len(made.decisions["pools"]) == 5


def test_resharding_is_one_gather_in_each_micro_dp_group() -> None:
    made = planned(hybridflow, workload(), cluster(), tp=4, pp=1)
    generation = made.decisions["pools"][0]["generation"]
    gathers = [t.op for t in made.tasks if t.id == "generate/reshard"]
    if generation["tp"] == 4:
        assert gathers == []
        return
    (op,) = gathers
    assert isinstance(op, Collective)
    weights = 2 * made.workload["parameters"]["actor"] / generation["tp"]
    assert op.nbytes == pytest.approx(weights, rel=1e-6)
    assert made.groups[op.group].shape == (8 // (4 // generation["tp"]), 4 // generation["tp"])


def test_a_long_tail_ends_generation_late() -> None:
    on = cluster()
    even, tail = planned(hybridflow, workload(), on), planned(hybridflow, workload(response_len=TAIL), on)
    assert tail.workload["longest_response"] > 3 * 256
    seconds = [p.decisions["pools"][0]["generation"]["seconds"] for p in (even, tail)]
    assert seconds[1] > 2 * seconds[0]
    replicas = {t.id for t in tail.tasks if t.id.endswith("/decode")}
    assert len(replicas) == tail.decisions["pools"][0]["generation"]["replicas"]


def test_what_does_not_fit_is_refused_with_the_smallest_change() -> None:
    on = cluster()
    with pytest.raises(DoesNotFit, match=r"would make it fit: about \d+ ranks instead of 8"):
        planned(hybridflow, workload(model="llama2_70b"), on)


def test_offloading_is_advised_where_it_is_enough_and_works() -> None:
    on = cluster()
    big = {"model": "llama2_7b", "models": {"reference": "llama2_70b", "reward": "llama2_70b"}}
    share = {"generation": {"memory_share": 0.6}}
    with pytest.raises(DoesNotFit, match=r"workload.offload: \[re"):
        planned(placed, workload(**big, **share), on)
    made = planned(placed, workload(**big, **share, offload=["reference", "reward"]), on)
    check(made, on)
    assert any(t.id.endswith("/fetch") for t in made.tasks)
    took = simulate(made, on, CostModel(on), iterations=1).makespan_s
    assert took == pytest.approx(made.decisions["predicted"]["iteration_s"], rel=0.06)


def test_two_kinds_of_devices() -> None:
    on = cluster(
        0,
        {"device": "a100_sxm_80", "nodes": 1, "devices_per_node": 4, "intra": "nvlink3", "inter": "roce_200"},
        {"device": "l40s", "nodes": 1, "devices_per_node": 4, "intra": "pcie4", "inter": "roce_100"},
    )
    made = planned(hybridflow, workload(), on)
    check(made, on)
    alone = planned(hybridflow, workload(), cluster(4)).decisions["predicted"]["iteration_s"]
    assert made.decisions["predicted"]["iteration_s"] < alone
    took = simulate(made, on, CostModel(on), iterations=1).makespan_s
    assert took == pytest.approx(made.decisions["predicted"]["iteration_s"], rel=0.08)


def test_descriptions() -> None:
    made = planned(placed, workload(), cluster(), placement="split")
    found = describe(made)
    assert {s.role for s in found.stays} == {"actor", "critic", "reference", "reward"}
    assert next(t.call for t in found.turns) == "generate"
    assert all(fill.margin_B > 0 for fill in found.fills)
    assert any("generate" in cause for cause in found.idle_s["pool1"])
    busy = sum(t.end_s - t.start_s for t in found.turns if t.pool == "pool1")
    assert busy + sum(found.idle_s["pool1"].values()) == pytest.approx(found.iteration_s)
    assert "Which model is where" in as_text(description_view(found))


def test_only_plans_of_rlhf_are_described() -> None:
    with pytest.raises(PlanError, match="only plans of RLHF"):
        describe(Plan(name="x", n_ranks=1, groups={}, tasks=()))


def test_verl_configuration() -> None:
    made = planned(placed, workload(samples=2, offload=["reference"]), cluster(), placement="colocate")
    text = verl_config(made)
    assert text.startswith("# Configuration of verl 0.6")
    found = yaml.safe_load(text)
    actor = made.decisions["pools"][0]["models"]["actor"]
    written = found["actor_rollout_ref"]["actor"]["megatron"]
    assert written["tensor_model_parallel_size"] == actor["parallelism"]["tp"]
    assert written["pipeline_model_parallel_size"] == actor["parallelism"]["pp"]
    assert found["actor_rollout_ref"]["actor"]["ppo_mini_batch_size"] == 32  # prompts, of two responses each
    assert found["actor_rollout_ref"]["ref"]["megatron"]["param_offload"]
    assert found["trainer"] == {"nnodes": 1, "n_gpus_per_node": 8}
    assert "reward_model" in found


def test_pools_that_verl_cannot_say_stand_in_comments() -> None:
    made = planned(placed, workload(), cluster(), placement="standalone")
    text = verl_config(made)
    assert "resource_pool_spec" in text
    assert '"Critic"' in text
    assert yaml.safe_load(text)["reward_model"]["enable_resource_pool"]


def test_verl_refuses_what_it_has_no_worker_for() -> None:
    made = planned(placed, workload(algorithm="safe_rlhf"), cluster(), placement="colocate")
    with pytest.raises(PlanError, match="no worker"):
        verl_config(made)


def test_other_workloads_are_refused() -> None:
    with pytest.raises(PlanError, match="hybridflow plans rlhf"):
        planned(hybridflow, None, cluster())  # type: ignore[arg-type]


def test_numbers_are_calls_where_no_controller_computes_them_meanwhile() -> None:
    """With the engine of real runs: of the pool that generates, from which they go to whoever learns from them."""
    fields = {"algorithm": "ppo", "checked": ["reward"], "precision": "float32", "recompute_log_prob": True}
    of_engine = {
        engine: planned(placed, workload(**fields, generation={"engine": engine}), cluster(), placement="split")
        for engine in ("vllm", "transformers")
    }
    sent = {name: {t.id for t in plan.tasks if "/to_pool" in t.id} for name, plan in of_engine.items()}
    assert {s.partition("/")[0] for s in sent["vllm"]} == {"generate", "values", "log_prob", "ref_log_prob"}
    assert {s.partition("/")[0] for s in sent["transformers"]} == {"generate", "values", "advantages"}


def test_the_plan_is_the_same_every_time() -> None:
    on = cluster()
    digests = {planned(hybridflow, workload(response_len=TAIL), on).digest for _ in range(2)}
    assert len(digests) == 1
    made = planned(hybridflow, workload(), on)
    assert Plan.from_json(made.to_json()).digest == made.digest


def test_nobody_waits_for_a_pool_of_one() -> None:
    """Its passes take what a rank takes by itself, in plans, in files, and in what the planner expects of them."""
    on, work = cluster(2), workload()
    measured = replace(on, devices=tuple(replace(d, measured={"unawaited": 0.75}) for d in on.devices))
    alone = planned(placed, work, measured, placement="split")
    assert Plan.from_json(alone.to_json()).digest == alone.digest
    passes = [t for t in alone.tasks if isinstance(t.op, Compute) and t.id.endswith(("/fwd", "/bwd"))]
    assert passes
    for task in passes:
        assert isinstance(task.op, Compute)
        own, slowest = (CostModel(one).compute(task.op, one.device(0)).seconds for one in (measured, on))
        assert own == pytest.approx(0.75 * slowest)
    together = planned(placed, work, measured, placement="colocate")
    assert "awaited" in alone.to_json()
    assert "awaited" not in together.to_json()

    def forward_s(cluster: Cluster) -> float:
        (zone,) = zones_of(cluster)
        return RoleCosts(work, "reference", cluster, zone, CostModel(cluster)).strategies(1)[0].forward_s

    assert forward_s(measured) == pytest.approx(0.75 * forward_s(on))


def test_what_the_host_does_for_tensor_parallelism_counts_where_plans_are_chosen() -> None:
    """On each pass: once for each forward microbatch, forward and backward for each of an update's."""
    on, work = cluster(2), workload()
    eager = {**dict.fromkeys(generation_eager.NEEDED, 0.0), "split_forward_s": 1e-3, "split_backward_s": 2e-3}
    hosted = replace(on, devices=tuple(replace(d, measured={"eager": eager}) for d in on.devices))

    def strategy(role: str, tp: int, cluster: Cluster) -> Strategy:
        (zone,) = zones_of(cluster)
        return RoleCosts(work, role, cluster, zone, CostModel(cluster), Limits(tp=tp, pp=1)).strategies(2)[0]

    layers = 16
    without, found = (strategy("reference", 2, one) for one in (on, hosted))
    passes = -(-work.sequences // found.forward_microbatch)
    assert found.forward_microbatch == without.forward_microbatch
    assert found.forward_s - without.forward_s == pytest.approx(passes * layers * 1e-3)
    without, found = (strategy("critic", 2, one) for one in (on, hosted))
    rounds = work.updates * -(-work.minibatch // found.choice.microbatch)
    assert found.choice == without.choice
    assert found.train_s - without.train_s == pytest.approx(rounds * layers * 3e-3)
    assert strategy("critic", 1, on).train_s == strategy("critic", 1, hosted).train_s


def test_an_update_of_twice_the_sequences_has_one_step_of_the_optimiser() -> None:
    on = cluster(2)
    (zone,) = zones_of(on)

    def train_s(**fields: object) -> float:
        work = workload(algorithm="safe_rlhf", prompts=2, **fields)
        costs = RoleCosts(work, "actor", on, zone, CostModel(on))
        made = planned(placed, work, on, placement="colocate")
        steps = sum(t.id.startswith("update_actor") and "optimizer" in t.id for t in made.tasks)
        assert steps == work.updates
        return min(s.train_s for s in costs.strategies(1))

    alone = train_s()
    assert 1.05 * alone < train_s(train_on_pretraining=True) < 1.95 * alone


def test_gradients_are_copied_into_their_messages_where_operators_wait_for_the_host() -> None:
    """Once an update, after the last microbatch, by every stage's ranks, of what they hold; nobody copies where nobody sums."""
    shape = TransformerShape(
        layers=2, hidden=64, ffn=128, heads=4, kv_heads=4, head_dim=16, vocab=256, max_len=32, tied_embeddings=False
    )
    work = TransformerTraining(model=shape, seq_len=16, global_batch=8, precision="float32")

    def copied(*, hosted: bool, **degrees: int) -> dict[str, int]:
        choice = Choice(microbatch=2, overlap=False, detail="layer", **degrees)
        tasks = update_tasks(work, choice, hosted=hosted)
        return {
            t.id: dict(k.shape)["elements"]
            for t in tasks
            if isinstance(t.op, Compute)
            for k in t.op.kernels
            if k.name == "copy"
        }

    whole = total_elements(shape)
    assert copied(hosted=True, dp=2) == {"m1/s0c0/bwd": whole}
    stages = copied(hosted=True, dp=2, pp=2)
    assert set(stages) == {"m1/s0c0/bwd", "m1/s1c0/bwd"}
    assert sum(stages.values()) == whole
    assert copied(hosted=True, dp=2, zero=3) == copied(hosted=True, tp=2) == copied(hosted=False, dp=2) == {}
