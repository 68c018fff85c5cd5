"""Plans of training: what they list, what they refuse, and that both levels of detail agree."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.transformer import parameters
from simcore.checks import problems_of
from simcore.errors import DoesNotFit, PlanError
from simcore.plan import Collective, Plan
from simcore.scenario import Scenario, load
from simcore.sim import SimBackend

ROOT = Path(__file__).parents[2]
TINY = (
    "cluster.device=server_cpu",
    "cluster.intra=loopback",
    "workload.model={layers: 4, hidden: 64, ffn: 96, heads: 4, vocab: 256}",
    "workload.seq_len=32",
)


def scenario(*overrides: str) -> Scenario:
    return load(ROOT / "scenarios" / "quickstart.yaml", (*TINY, *overrides))


def ids(plan: Plan) -> list[str]:
    return [t.id for t in plan.tasks]


def test_layers_are_listed_as_real_runs_them() -> None:
    listed = ids(scenario("workload.model.layers=2").plan())
    assert listed == [
        "m0/fwd/embed", "m0/fwd/layer0", "m0/fwd/layer1", "m0/fwd/head", "m0/bwd/head", "m0/bwd/layer1", "m0/bwd/layer0",
        "m0/bwd/embed", "grad/s0/bucket0", "optimizer/s0",
    ]  # fmt: skip


def test_zero_3_gathers_twice_and_scatters_once_a_layer() -> None:
    listed = ids(scenario("planner.zero=3", "planner.overlap=false").plan())
    assert sum(i.endswith("/all_gather") for i in listed) == 2 * 4 + 1
    assert sum(i.endswith("/reduce_scatter") for i in listed) == 4 + 1


def test_buckets_hold_every_parameter_once_in_reverse_order() -> None:
    chosen = scenario("planner.bucket=32 KiB", "planner.first_bucket=8 KiB")
    buckets = chosen.plan().decisions["buckets"]["stage0"]
    names = [n for bucket in buckets for n in bucket]
    assert names == [n for n, _ in reversed(parameters(chosen.workload().model))]
    assert len(buckets) > 2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.integers(0, 3),
    st.booleans(),
)
def test_every_plan_passes_its_own_checks(tp: int, pp: int, cp: int, vpp: int, zero: int, sequence: bool) -> None:
    overrides = (
        "cluster.devices_per_node=16", "planner.detail=chunk", f"planner.tp={tp}", f"planner.pp={pp}", f"planner.cp={cp}",
        f"planner.vpp={vpp}", f"planner.zero={zero}", f"planner.sequence_parallel={str(sequence).lower()}",
        "workload.global_batch=64", "planner.microbatch=1",
    )  # fmt: skip
    chosen = scenario(*overrides)
    try:
        plan = chosen.plan()
    except PlanError as error:
        assert all(p.field.startswith("planner.") for p in error.problems)
        return
    assert problems_of(plan, chosen.cluster()) == []
    assert Plan.from_json(plan.to_json()).digest == plan.digest
    trace = SimBackend.from_scenario(chosen).run(plan)
    assert not trace.incomplete


def test_both_levels_of_detail_take_the_same_time_without_contention() -> None:
    """They launch the same kernels but for fused projections, so time differs by launches only."""
    times = []
    for detail in ("layer", "chunk"):
        chosen = scenario(
            f"planner.detail={detail}",
            "cluster.devices_per_node=1",
            "workload.seq_len=1024",
            "workload.iterations=1",
            "workload.model={layers: 4, hidden: 1024, ffn: 2816, heads: 16, vocab: 256}",
        )
        times.append(SimBackend.from_scenario(chosen).run(chosen.plan()).makespan_s)
    assert times[0] == pytest.approx(times[1], rel=0.05)


def test_everything_wrong_with_a_parallelism_is_said_at_once() -> None:
    with pytest.raises(PlanError) as error:
        scenario("planner.tp=3", "planner.pp=2", "planner.microbatch=5").plan()
    fields = {p.field for p in error.value.problems}
    assert {"planner.tp", "planner.detail", "planner.dp", "planner.microbatch"} <= fields


def test_a_plan_that_does_not_fit_is_refused_with_what_is_lacking() -> None:
    chosen = load(
        ROOT / "scenarios" / "gpt3_175b_a100.yaml",
        ("planner.recompute=none", "planner.microbatch=4", "workload.global_batch=256"),
    )
    with pytest.raises(DoesNotFit, match="are lacking"):
        SimBackend.from_scenario(chosen).run(chosen.plan())


def test_pipelines_send_what_they_make() -> None:
    plan = scenario("cluster.devices_per_node=4", "planner.detail=chunk", "planner.pp=2", "planner.microbatch=1").plan()
    sends = [t for t in plan.tasks if t.id.endswith("/send")]
    assert len(sends) == 2 * plan.decisions["microbatches"]
    assert {t.op.nbytes for t in sends} == {32 * 64 * 4}


def test_collectives_of_a_layer_name_their_axis() -> None:
    plan = scenario("planner.tp=2").plan()
    along = {t.op.along for t in plan.tasks if isinstance(t.op, Collective)}
    assert along == {("tp",)}
