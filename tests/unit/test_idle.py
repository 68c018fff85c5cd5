"""Where the time of a rank goes."""

import numpy as np
import pytest

from simcore.engine.kinds import COMMUNICATION, COMPUTE, STORAGE
from simcore.engine.simulate import simulate
from simcore.plan import Group, Plan, Read, Task
from simcore.reporting.idle import iteration_bounds, occupation
from tests.laws.worlds import PlainCost, cluster
from tests.unit.toys import compute, plan_of, reduce_over, relay, trace_of


def one_rank() -> Plan:
    groups = {"r0": Group.listed([0])}
    tasks = [
        Task("read", Read(group="r0", store="s", nbytes=1)),
        Task("fwd", compute("r0")),
        Task("sum", reduce_over("r0", "all")),
        Task("more", compute("r0")),
    ]
    return plan_of(tasks, groups, 1)


def test_work_hides_communication_and_storage() -> None:
    plan = one_rank()
    trace = trace_of(plan, [("read", 0, 0, 2), ("fwd", 0, 1, 4), ("sum", 0, 3, 6), ("more", 0, 8, 10)])
    spent = occupation(plan, trace)
    assert spent.total_s == 10
    assert spent.busy == {COMPUTE: 5, COMMUNICATION: 2, STORAGE: 1}
    assert spent.hidden == {COMPUTE: 0, COMMUNICATION: 1, STORAGE: 1}
    assert spent.idle["dependency"] == 2
    assert sum(spent.idle.values()) == 2


def test_what_comes_next_says_what_a_rank_waits_for() -> None:
    plan, world = relay(3), cluster(3)
    spent = occupation(plan, simulate(plan, world, PlainCost(world)))
    # 3 stages of 2 s, transfers of 1 s between them: stages wait 0, 2 and 5 s for a transfer, 5, 2 and 0 s for the sum
    assert spent.idle["transfer partner"] == pytest.approx((0 + 2 + 5) / 3)
    assert spent.idle["collective peers"] == pytest.approx((5 + 2 + 0) / 3)
    assert spent.idle["end of iteration"] == 0


def test_the_end_of_an_iteration_is_waited_for() -> None:
    groups = {"r0": Group.listed([0]), "r1": Group.listed([1])}
    plan = plan_of([Task("a", compute("r0")), Task("b", compute("r1"))], groups, 2)
    trace = trace_of(plan, [("a", 0, 0, 1), ("b", 1, 0, 3), ("a", 0, 3, 4), ("b", 1, 3, 6)], iterations=[0, 0, 1, 1])
    assert iteration_bounds(trace).tolist() == [0, 3, 6]
    assert occupation(plan, trace).idle["end of iteration"] == pytest.approx((2 + 2 + 0 + 0) / 2)


def test_a_lane_counts_as_often_as_it_has_ranks() -> None:
    world = cluster(8)
    groups = {"few": Group.listed([0]), "many": Group.listed(range(1, 8))}
    plan = plan_of([Task("a", compute("few", 8)), Task("b", compute("many", 4))], groups, 8)
    spent = occupation(plan, simulate(plan, world, PlainCost(world)))
    assert spent.busy[COMPUTE] == pytest.approx((8 + 7 * 4) / 8)


def test_busy_and_idle_add_up_for_overlapping_spans() -> None:
    rng = np.random.default_rng(3)
    plan = one_rank()
    rows = [
        (plan.tasks[int(t)].id, 0, float(s), float(s + d)) for t, s, d in zip(*rng.integers(0, 4, (3, 50)), strict=True)
    ]
    spent = occupation(plan, trace_of(plan, rows))
    assert sum(spent.busy.values()) + sum(spent.idle.values()) == pytest.approx(spent.total_s)


def test_an_empty_trace_spends_nothing() -> None:
    plan = one_rank()
    spent = occupation(plan, trace_of(plan, []))
    assert spent.total_s == 0
    assert sum(spent.busy.values()) + sum(spent.idle.values()) == 0
