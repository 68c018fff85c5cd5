"""Plans on actual processes: the same training whichever way it is spread, and a span for every task."""

from pathlib import Path

import numpy as np
import pytest
import torch

from real.backend import RealBackend
from real.data import Batches, text
from simcore.errors import CannotRun
from simcore.plan import Plan
from simcore.scenario import Scenario, load
from simcore.trace import Trace

ROOT = Path(__file__).parents[2]
SMALL = (
    "cluster.device=server_cpu",
    "cluster.intra=loopback",
    "workload.model={layers: 2, hidden: 64, ffn: 96, heads: 4, vocab: 256}",
    "workload.seq_len=32",
    "workload.global_batch=8",
    "workload.iterations=3",
    "planner.microbatch=2",
    "planner.bucket=64 KiB",
    "planner.first_bucket=16 KiB",
)
WAYS = {
    "data parallel": (),
    "no overlap": ("planner.overlap=false",),
    "ZeRO 1": ("planner.zero=1",),
    "ZeRO 2": ("planner.zero=2", "planner.overlap=false"),
    "ZeRO 3": ("planner.zero=3", "planner.overlap=false"),
    "tensor parallel": ("planner.tp=2",),
}


def scenario(*overrides: str) -> Scenario:
    return load(ROOT / "scenarios" / "quickstart.yaml", (*SMALL, *overrides))


def run(*overrides: str) -> tuple[Plan, Trace]:
    chosen = scenario(*overrides)
    plan = chosen.plan()
    return plan, RealBackend.from_scenario(chosen).run(plan)


@pytest.fixture(scope="module")
def alone() -> Trace:
    """One process that does all the work."""
    return run("cluster.devices_per_node=1")[1]


def test_the_loss_of_one_process_falls(alone: Trace) -> None:
    loss = alone.extra["loss"]
    assert loss[-1] < loss[0] - 0.3
    assert loss[0] == pytest.approx(np.log(256), abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_spread_it_trains_the_same_model(way: str, alone: Trace) -> None:
    plan, trace = run(*WAYS[way])
    np.testing.assert_allclose(trace.extra["loss"], alone.extra["loss"], rtol=2e-4)
    for lane in range(2):
        assert {plan.tasks[t].id for t in trace.task[trace.lane == lane]} == {t.id for t in plan.tasks}
    assert trace.plan_digest == plan.digest
    assert (trace.end_s >= trace.start_s).all()
    assert (trace.start_s >= 0).all()
    assert set(trace.iteration.tolist()) == {0, 1, 2}
    path = trace.environment["path"]
    assert ("CUDA" in path) == torch.cuda.is_available()


def test_what_cannot_run_here_is_refused_with_what_is_lacking() -> None:
    chosen = scenario("planner.detail=chunk", "planner.pp=2", "workload.precision=bfloat16")
    plan = chosen.plan()
    backend = RealBackend.from_scenario(chosen)
    fields = {p.field for p in backend.check(plan)}
    assert {"planner.detail", "planner.pp"} <= fields
    with pytest.raises(CannotRun, match="only simulated"):
        backend.run(plan)


@pytest.mark.slow
def test_a_worker_that_fails_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = scenario("cluster.devices_per_node=1")
    plan = chosen.plan()
    broken = {**plan.workload, "model": {**plan.workload["model"], "heads": 3}}
    backend = RealBackend.from_scenario(chosen)
    with pytest.raises(CannotRun, match="rank 0"):
        backend.run(Plan(**{**vars_of(plan), "workload": broken}))


def vars_of(plan: Plan) -> dict[str, object]:
    names = ("name", "n_ranks", "groups", "tasks", "decisions", "workload", "memory_B")
    return {name: getattr(plan, name) for name in names}


def test_text_is_real_and_batches_repeat_with_their_seed() -> None:
    assert b"statement" in text().tobytes()
    a, b = (Batches(seed=3, seq_len=16, vocab=256).next(4) for _ in range(2))
    assert a.shape == (4, 17)
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="256"):
        Batches(seed=0, seq_len=16, vocab=100)
