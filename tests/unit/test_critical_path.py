"""The chain of tasks that decides the time, on traces made by hand and by the engine."""

from itertools import pairwise

import numpy as np
import pytest

from simcore.engine.simulate import simulate
from simcore.plan import Group, Task
from simcore.reporting.critical_path import WAITING, Step, contributions, critical_path
from tests.laws.worlds import PlainCost, cluster
from tests.unit.toys import Row, compute, plan_of, reduce_over, relay, trace_of


def names(steps: list[Step]) -> list[str | None]:
    return [step.task for step in steps]


def test_a_relay_is_its_own_critical_path() -> None:
    plan, world = relay(3), cluster(3)
    steps = critical_path(plan, simulate(plan, world, PlainCost(world)))
    assert names(steps) == [task.id for task in plan.tasks]
    assert all(a.end_s == b.start_s for a, b in pairwise(steps))


def test_a_collective_blames_the_last_to_arrive() -> None:
    groups = {"r0": Group.listed([0]), "r1": Group.listed([1]), "all": Group.listed([0, 1])}
    tasks = [
        Task("quick", compute("r0", 1)),
        Task("slow", compute("r1", 5)),
        Task("sum", reduce_over("all", "all"), ("quick", "slow")),
    ]
    plan = plan_of(tasks, groups, 2)
    measured = trace_of(plan, [("quick", 0, 0, 1), ("slow", 1, 0, 5), ("sum", 0, 1, 6), ("sum", 1, 5, 6)])
    steps = critical_path(plan, measured)
    assert names(steps) == ["slow", "sum"]
    assert steps[-1].start_s == 5


def test_the_stream_binds_where_no_dependency_does() -> None:
    groups = {"r0": Group.listed([0])}
    plan = plan_of([Task("a", compute("r0", 3)), Task("b", compute("r0", 1))], groups, 1)
    assert names(critical_path(plan, trace_of(plan, [("a", 0, 0, 3), ("b", 0, 3, 4)]))) == ["a", "b"]


def test_time_that_nothing_explains_is_waiting() -> None:
    groups = {"r0": Group.listed([0])}
    plan = plan_of([Task("a", compute("r0")), Task("b", compute("r0"), ("a",))], groups, 1)
    steps = critical_path(plan, trace_of(plan, [("a", 0, 0.5, 1), ("b", 0, 3, 4)]))
    assert steps == [Step(None, 0, 0, 0.5), Step("a", 0, 0.5, 1), Step(None, 0, 1, 3), Step("b", 0, 3, 4)]
    found = {c.kind: c.seconds for c in contributions(plan, steps)}
    assert found == {WAITING: 2.5, "a": 0.5, "b": 1.0}


def test_pieces_of_a_task_count_as_one() -> None:
    groups = {"r0": Group.listed([0])}
    plan = plan_of([Task("a", compute("r0")), Task("b", compute("r0"), ("a",))], groups, 1)
    rows: list[Row] = [("a", 0, 0, 1), ("a", 0, 2, 3), ("b", 0, 3, 4)]
    assert critical_path(plan, trace_of(plan, rows)) == [Step("a", 0, 0, 3), Step("b", 0, 3, 4)]


def test_every_iteration_has_its_own_path() -> None:
    groups = {"r0": Group.listed([0])}
    plan = plan_of([Task("a", compute("r0"))], groups, 1)
    trace = trace_of(plan, [("a", 0, 0, 1), ("a", 0, 1, 5)], iterations=[0, 1])
    assert critical_path(plan, trace, 0) == [Step("a", 0, 0, 1)]
    assert critical_path(plan, trace) == [Step("a", 0, 1, 5)]


def test_an_empty_trace_has_no_path() -> None:
    plan = relay(2)
    assert critical_path(plan, trace_of(plan, [])) == []
    assert contributions(plan, []) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_path_fills_the_iteration_without_gaps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = {"r0": Group.listed([0]), "r1": Group.listed([1]), "all": Group.listed([0, 1])}
    tasks: list[Task] = []
    for i in range(40):
        op = (
            reduce_over("all", "all") if rng.random() < 0.2 else compute(f"r{rng.integers(2)}", int(rng.integers(1, 9)))
        )
        after = tuple(sorted({tasks[int(j)].id for j in rng.integers(0, i, 2)})) if i else ()
        tasks.append(Task(f"t{i}", op, after))
    plan, world = plan_of(tasks, groups, 2), cluster(2)
    trace = simulate(plan, world, PlainCost(world))
    steps = critical_path(plan, trace)
    assert steps[0].start_s == 0
    assert steps[-1].end_s == trace.makespan_s
    assert all(a.end_s == b.start_s for a, b in pairwise(steps))
    assert sum(c.share for c in contributions(plan, steps)) == pytest.approx(1)
