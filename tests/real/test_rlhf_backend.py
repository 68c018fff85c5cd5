"""Plans of RLHF on actual processes: a span for every task, the same numbers wherever models are, and refusals."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from simcore.compare import compare
from simcore.errors import CannotRun
from simcore.plan import Plan
from simcore.reporting.report import report
from simcore.scenario import Scenario, load
from simcore.trace import Trace

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
pytest.importorskip("transformers")

from real.backend import RealBackend  # noqa: E402
from real.rlhf.placement import of_plan  # noqa: E402
from real.rlhf.variations import order  # noqa: E402
from real.workloads.rlhf import job_of  # noqa: E402
from simcore.hybridflow.grouping import Degrees  # noqa: E402

ROOT = Path(__file__).parents[2]
SMALL = (
    "cluster.device=server_cpu",
    "cluster.intra=loopback",
    "workload.model={layers: 2, hidden: 32, ffn: 48, heads: 4, vocab: 64}",
    "workload.prompts=8",
    "workload.prompt_len=8",
    "workload.response_len=8",
    "workload.iterations=2",
)
SPLIT, ACROSS, STAGES = "planner.placement=split", "planner.tp=2", "planner.pp=2"


def scenario(*overrides: str) -> Scenario:
    return load(ROOT / "scenarios" / "hybridflow_this_machine.yaml", (*SMALL, *overrides))


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    """One Ray for all runs, with more places than cores."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def run(*overrides: str) -> tuple[Plan, Trace]:
    chosen = scenario(*overrides)
    plan = chosen.plan()
    return plan, RealBackend.from_scenario(chosen).run(plan)


@pytest.fixture(scope="module")
def two_pools(started: None) -> tuple[Plan, Trace]:
    return run(SPLIT)


def of_rank(plan: Plan, rank: int) -> set[str]:
    """Tasks that a rank has to do with; what arrives counts where it arrives."""
    found = set()
    for task in plan.tasks:
        group = task.op.target if hasattr(task.op, "target") else task.op.group
        if rank in plan.groups[group].ranks():
            found.add(task.id)
    return found


@pytest.mark.slow
def test_every_task_of_the_plan_has_its_spans(two_pools: tuple[Plan, Trace]) -> None:
    plan, trace = two_pools
    assert trace.plan_digest == plan.digest
    for lane in range(2):
        assert {trace.task_ids[t] for t in trace.task[trace.lane == lane]} == of_rank(plan, lane)
    assert set(trace.iteration.tolist()) == {0, 1}
    assert (trace.end_s >= trace.start_s).all()
    assert (report(plan, trace).metrics["iteration_s"] or 0.0) > 0


@pytest.mark.slow
def test_results_of_a_call_are_there_before_calls_that_need_them(two_pools: tuple[Plan, Trace]) -> None:
    plan, trace = two_pools
    for iteration in range(2):
        mine = trace.iteration == iteration

        def when(task: str, mine: np.ndarray = mine) -> tuple[float, float]:
            rows = mine & (trace.task == plan.index[task])
            return float(trace.start_s[rows].min()), float(trace.end_s[rows].max())

        for before, after in (
            ("generate/r0/decode", "log_prob/m0/s0/fwd"),
            ("generate/r0/decode", "values/m0/s0/fwd"),
            ("values/m0/s0/fwd", "update_actor/u0/m0/s0c0/fwd"),
            ("log_prob/m0/s0/fwd", "update_critic/u0/m0/s0c0/fwd"),
            ("update_actor/u0/optimizer/s0", "update_actor/u1/m0/s0c0/fwd"),
        ):
            assert when(before)[1] <= when(after)[0]


@pytest.mark.slow
def test_rewards_are_those_of_any_other_placement(two_pools: tuple[Plan, Trace]) -> None:
    plan, trace = run(ACROSS)
    assert plan.decisions["pools"][0]["models"]["actor"]["parallelism"]["tp"] == 2
    assert trace.extra["reward"] == pytest.approx(two_pools[1].extra["reward"], rel=1e-5)
    spans = {trace.task_ids[t] for t in trace.task}
    assert {t.id for t in plan.tasks if not t.id.endswith("/tp")} <= spans


@pytest.mark.slow
def test_a_pipeline_has_the_spans_of_its_plan(two_pools: tuple[Plan, Trace]) -> None:
    """A pass for every portion on every stage, and what goes between stages where it arrives, unless that is too short to be
    written down."""
    plan, trace = run(STAGES)
    assert plan.decisions["pools"][0]["models"]["actor"]["parallelism"]["pp"] == 2
    for lane in range(2):
        seen, own = {trace.task_ids[t] for t in trace.task[trace.lane == lane]}, of_rank(plan, lane)
        assert seen <= own
        assert all(task.endswith("/send") for task in own - seen)
    assert any(trace.task_ids[t].endswith("/send") for t in trace.task)
    assert trace.extra["reward"] == pytest.approx(two_pools[1].extra["reward"], rel=1e-5)


@pytest.mark.slow
def test_updates_of_safe_rlhf_learn_from_pretraining_text(started: None) -> None:
    """As many rows of text as of answers, in portions that follow those of the answers."""
    plan, trace = run(SPLIT, "workload.algorithm=safe_rlhf")
    for lane in range(2):
        assert {trace.task_ids[t] for t in trace.task[trace.lane == lane]} == of_rank(plan, lane)
    portions = [
        sum(t.id.startswith(f"{update}/u0/m") and t.id.endswith("/fwd") for t in plan.tasks)
        for update in ("update_critic", "update_actor")
    ]
    assert portions[1] == 2 * portions[0]
    assert len(trace.extra["cost"]) == 2


@pytest.mark.slow
def test_ranks_that_share_cores_run_and_the_report_says_so(two_pools: tuple[Plan, Trace]) -> None:
    found = compare(scenario("cluster.devices_per_node=3", "planner.placement=standalone"))
    assert found.metrics["iteration_s"]["error"] is not None
    crowded = len(os.sched_getaffinity(0)) < 3
    assert any("3 ranks share" in warning for warning in found.warnings) == crowded


@pytest.mark.slow
def is_worker(process: psutil.Process) -> bool:
    """Whether it is one of Ray's with a rank in it, and there at all."""
    try:
        return "ray::Worker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_a_worker_that_dies_is_an_error_with_its_place(two_pools: tuple[Plan, Trace]) -> None:
    chosen = scenario(SPLIT)

    def kill(_: float, phrase: str) -> None:
        if phrase == "iteration 1 of 2":
            own = [p for p in psutil.Process().children(recursive=True) if is_worker(p)]
            max(own, key=lambda p: p.create_time()).kill()  # those of an earlier Ray may still be on their way out

    with pytest.raises(CannotRun, match="a process failed") as stopped:
        RealBackend.from_scenario(chosen).run(two_pools[0], progress=kill)
    (problem,) = stopped.value.problems
    assert problem.field.startswith("pool")
    assert "ended" in problem.given


def test_what_cannot_run_here_is_refused_with_what_to_change() -> None:
    changed = (
        "workload.algorithm=safe_rlhf",
        "workload.checked=[]",
        "workload.recompute_log_prob=false",
        "workload.train_on_pretraining=false",
        "workload.response_len={distribution: lognormal, mean: 8, sigma: 0.5, longest: 16}",
        "planner.detail=chunk",
        "planner.zero=1",
    )
    chosen = scenario(*changed)
    fields = {p.field for p in RealBackend.from_scenario(chosen).check(chosen.plan())}
    wanted = ("checked", "recompute_log_prob", "train_on_pretraining", "response_len")
    assert {f"workload.{name}" for name in wanted} <= fields
    assert {"planner.detail", "actor: planner.zero"} <= fields


def test_the_plan_says_what_is_trained_and_where() -> None:
    plan = scenario("workload.algorithm=grpo", "workload.samples=2", ACROSS).plan()
    job, placement = job_of(plan.workload), of_plan(plan.decisions, plan.workload["checked"])
    assert (job.algorithm, job.answers, job.sequences, job.minibatches) == ("grpo", 2, 16, 2)
    (pool,) = placement.pools
    assert (pool.degrees["actor"].tp, pool.degrees["actor"].dp) == (2, 1)
    assert pool.degrees["reward"] == Degrees(dp=2)
    assert not pool.portions["actor"].sharded
    assert pool.portions["actor"].microbatch == plan.decisions["pools"][0]["models"]["actor"]["microbatch"]


def test_plans_are_in_another_order_only_where_measurements_tell_them_apart() -> None:
    def row(name: str, simulated: float, *measured: float) -> dict[str, object]:
        return {"variation": name, "simulated": simulated, "at_pace_s": measured}

    rows = [row("a", 1.0, 1.1), row("b", 2.0, 2.2), row("c", 1.9, 2.21), row("d", 2.1, 1.0)]
    found = order(rows)
    assert found.swapped == [("a", "d"), ("b", "d"), ("c", "d")]
    assert found.apart == [("a", "b"), ("a", "c"), *found.swapped]


def test_plans_are_told_apart_by_what_they_take_in_the_same_rounds() -> None:
    """Medians of 2.0 and 2.2 s say that the first is faster; it is slower in every round but one, which something disturbed."""
    rows = [
        {"variation": "a", "simulated": 1.1, "at_pace_s": (1.05, 2.0, 3.15)},
        {"variation": "b", "simulated": 1.0, "at_pace_s": (1.00, 2.2, 3.00)},
    ]
    assert order(rows).apart == [("a", "b")]
    assert not order(rows).swapped
