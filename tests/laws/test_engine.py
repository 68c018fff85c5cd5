"""Laws 2 to 4 on random plans."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcore.engine.simulate import simulate
from simcore.plan import Compute, Transfer
from simcore.trace import Trace
from tests.laws.plans import Case, random_case

SEEDS = st.integers(0, 2**32 - 1)
EPS = 1e-9


def run(case: Case, **options: object) -> Trace:
    return simulate(case.plan, case.world, case.cost, faults=case.faults, **options)  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SEEDS)
def test_the_same_plan_gives_the_same_trace(seed: int) -> None:
    a, b = run(random_case(seed)), run(random_case(seed))
    for name in ("task", "iteration", "lane", "start_s", "end_s", "nbytes"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SEEDS)
def test_nothing_starts_before_what_it_waits_for(seed: int) -> None:
    case = random_case(seed)
    trace = run(case, expand=True)
    tasks = case.plan.tasks
    begun: dict[tuple[int, int, int], float] = {}
    ended: dict[tuple[int, int, int], float] = {}
    for t, i, lane, start, end in zip(trace.task, trace.iteration, trace.lane, trace.start_s, trace.end_s, strict=True):
        assert end >= start >= 0
        key = (int(i), int(t), int(lane))
        begun[key] = min(begun.get(key, np.inf), start)
        ended[key] = max(ended.get(key, 0.0), end)
    position = case.plan.index
    for (i, t, lane), start in begun.items():
        for name in tasks[t].after:
            before = position[name]
            own = ended.get((i, before, lane))
            takes_part = lane in _ranks(case, before)
            waits = [own] if takes_part else [e for (j, b, _), e in ended.items() if (j, b) == (i, before)]
            assert all(w is not None and w <= start + EPS for w in waits)


def _ranks(case: Case, task: int) -> set[int]:
    op = case.plan.tasks[task].op
    names = (op.source, op.target) if isinstance(op, Transfer) else (op.group,)
    return {int(r) for name in names for r in case.plan.groups[name].ranks().ravel()}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SEEDS)
def test_a_stream_holds_one_thing_at_a_time(seed: int) -> None:
    case = random_case(seed)
    trace = run(case, expand=True)
    streams: dict[tuple[int, str], list[tuple[float, float, int]]] = {}
    for span in trace.spans():
        stream = case.plan.tasks[case.plan.index[span.task]].op.stream
        streams.setdefault((span.lane, stream), []).append((span.start_s, span.end_s, case.plan.index[span.task]))
    for spans in streams.values():
        spans.sort()
        for (_, end, task), (start, _, following) in pairwise(spans):
            assert start >= end - EPS or task == following


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SEEDS)
def test_makespan_is_no_less_than_the_busiest_device_or_link(seed: int) -> None:
    case = random_case(seed, faults=False)
    trace = run(case, iterations=1, expand=True)
    work = np.zeros(case.plan.n_ranks)
    for task in case.plan.tasks:
        if isinstance(task.op, Compute):
            for rank in case.plan.groups[task.op.group].ranks().ravel():
                work[rank] += case.cost.compute(task.op, case.world.device(int(rank))).seconds
    assert trace.makespan_s >= work.max() - EPS
    assert all(link["busy"] <= 1 + EPS for link in trace.extra["links"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SEEDS)
def test_nothing_runs_on_a_dead_device(seed: int) -> None:
    case = random_case(seed)
    trace = run(case)
    deaths = {r: e.at_s for e in reversed(case.faults) if e.factor == 0 for r in e.ranks}
    for rank, at in deaths.items():
        lane = next(i for i, x in enumerate(trace.lanes) if any(a <= rank <= b for a, b in x.ranks))
        assert (trace.end_s[trace.lane == lane] <= at + EPS).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SEEDS, st.sampled_from(["fifo", "max_min"]))
def test_sharing_only_ever_costs_time(seed: int, sharing: str) -> None:
    """A world whose links are so wide that nobody meets is never slower."""
    case = random_case(seed, faults=False)
    wide = case.world.fabric
    before = run(case, iterations=1, sharing=sharing).makespan_s
    wide.capacity_B_per_s = wide.capacity_B_per_s * 1e6  # type: ignore[misc]
    assert run(case, iterations=1, sharing=sharing).makespan_s <= before + EPS


@pytest.mark.parametrize("seed", range(20))
def test_iterations_follow_each_other_without_overlap(seed: int) -> None:
    case = random_case(seed, faults=False)
    one, three = run(case, iterations=1), run(case, iterations=3)
    assert three.makespan_s == pytest.approx(3 * one.makespan_s, rel=1e-12)
    for i in range(3):
        assert three.start_s[three.iteration == i].min() >= i * one.makespan_s - EPS
