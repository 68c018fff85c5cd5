"""Law 5: one rank of each class stands for all, exactly."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simcore.engine.simulate import simulate
from simcore.plan import Collective, Group, Plan, Task
from simcore.trace import Trace
from tests.laws.plans import Case, random_case, work
from tests.laws.worlds import PlainCost, cluster


def timelines(trace: Trace) -> dict[tuple[str, int, int], list[tuple[float, float]]]:
    """Spans by task, iteration and rank."""
    lanes = [[r for first, last in lane.ranks for r in range(first, last + 1)] for lane in trace.lanes]
    out: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for span in trace.spans():
        for rank in lanes[span.lane]:
            out.setdefault((span.task, span.iteration, rank), []).append((span.start_s, span.end_s))
    return {key: sorted(value) for key, value in out.items()}


def assert_same(case: Case) -> tuple[Trace, Trace]:
    grouped = simulate(case.plan, case.world, case.cost, faults=case.faults)
    expanded = simulate(case.plan, case.world, case.cost, faults=case.faults, expand=True)
    a, b = timelines(grouped), timelines(expanded)
    assert a.keys() == b.keys()
    for key, spans in b.items():
        # a class that sends and receives in one task has one span where two instances have two
        np.testing.assert_allclose(
            np.unique(np.round(a[key], 9), axis=0), np.unique(np.round(spans, 9), axis=0), rtol=1e-9, err_msg=str(key)
        )
    return grouped, expanded


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_grouped_and_expanded_runs_give_the_same_times(seed: int) -> None:
    assert_same(random_case(seed))


def test_symmetric_replicas_are_one_class() -> None:
    group = Group(axes=(("dp", 64, 1),))
    tasks = (
        Task("c", work("g", 3)),
        Task("r", Collective(kind="all_reduce", group="g", along=("dp",), nbytes=8), ("c",)),
    )
    plan = Plan(name="dp", n_ranks=64, groups={"g": group}, tasks=tasks)
    world = cluster(64, block=4)
    assert len(simulate(plan, world, PlainCost(world)).lanes) == 1
    assert len(simulate(plan, world, PlainCost(world), expand=True).lanes) == 64
