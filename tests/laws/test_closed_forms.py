"""Contention-free and textbook cases against their formulas, within 0.1 %."""

import numpy as np
import pytest

from costmodels.ring import ring_steps
from simcore.engine.simulate import simulate
from simcore.faults import Event
from simcore.plan import Collective, Group, Plan, Task, Transfer
from tests.laws.plans import work
from tests.laws.worlds import PlainCost, cluster, device

WITHIN = 1e-3


def flat(n: int) -> Group:
    return Group(axes=(("dp", n, 1),))


def single(rank: int) -> Group:
    return Group(axes=(("one", 1, 1),), offset=rank)


@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_ring_all_reduce(n: int) -> None:
    plan = Plan(
        name="ring", n_ranks=n, groups={"g": flat(n)},
        tasks=(Task("r", Collective(kind="all_reduce", group="g", along=("dp",), nbytes=1000)),),
    )  # fmt: skip
    world = cluster(n, block=64)
    expected = 2 * (n - 1) * (0.5 + 1000 / n)
    for skew in (False, True):
        assert simulate(plan, world, PlainCost(world, latency_s=0.5), skew=skew).makespan_s == pytest.approx(
            expected, rel=WITHIN
        )


def test_a_late_member_delays_a_ring_by_its_delay() -> None:
    n = 16
    arrivals = np.zeros(n)
    arrivals[5] = 100.0
    ends = ring_steps(arrivals, 16.0, 0.0, 1.0)
    assert ends.max() == pytest.approx(100 + 2 * (n - 1), rel=1e-12)
    assert (ends >= 100).all()


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 8), (8, 8)])
def test_pipeline_bubble(stages: int, microbatches: int) -> None:
    """GPipe's forward: (m + p - 1) steps for m microbatches, an idle share of (p - 1) / (m + p - 1) on every stage."""
    groups = {f"s{s}": single(s) for s in range(stages)}
    tasks: list[Task] = []
    for m in range(microbatches):
        for s in range(stages):
            tasks.append(Task(f"m{m}/s{s}", work(f"s{s}", 5), (f"m{m}/send{s}",) if s else ()))
            if s + 1 < stages:
                send = Transfer(source=f"s{s}", target=f"s{s + 1}", nbytes=0, stream=f"p{s}")
                tasks.append(Task(f"m{m}/send{s + 1}", send, (f"m{m}/s{s}",)))
    plan = Plan(name="pipe", n_ranks=stages, groups=groups, tasks=tuple(tasks))
    world = cluster(stages, block=64)
    makespan = simulate(plan, world, PlainCost(world)).makespan_s
    assert makespan == pytest.approx(5 * (microbatches + stages - 1), rel=WITHIN)


def test_flows_on_one_link_share_it_evenly() -> None:
    """Three flows of 1, 2 and 3 bytes out of one port of 1 B/s: they end after 3, 5 and 6 seconds."""
    groups = {f"r{i}": single(i) for i in range(4)}
    tasks = tuple(Task(f"t{i}", Transfer(source="r0", target=f"r{i}", nbytes=i, stream=f"s{i}")) for i in range(1, 4))
    plan = Plan(name="share", n_ranks=4, groups=groups, tasks=tasks)
    world = cluster(4, block=64)
    ends = {s.task: s.end_s for s in simulate(plan, world, PlainCost(world)).spans()}
    assert ends == pytest.approx({"t1": 3.0, "t2": 5.0, "t3": 6.0}, rel=WITHIN)
    in_turn = {s.task: s.end_s for s in simulate(plan, world, PlainCost(world), sharing="fifo").spans()}
    assert in_turn == pytest.approx({"t1": 1.0, "t2": 3.0, "t3": 6.0}, rel=WITHIN)


def test_max_min_gives_what_a_bottleneck_leaves_to_the_others() -> None:
    """Two flows cross a trunk of 0.5 B/s; the third shares a port with one of them and takes the rest of it, 0.75 B/s."""
    groups = {f"r{i}": single(i) for i in range(4)}
    routes = {"a": ("r0", "r2"), "b": ("r1", "r3"), "c": ("r0", "r1")}
    tasks = tuple(Task(k, Transfer(source=s, target=t, nbytes=3, stream=k)) for k, (s, t) in routes.items())
    plan = Plan(name="bottleneck", n_ranks=4, groups=groups, tasks=tasks)
    world = cluster(4, block=2, trunk=0.5)
    ends = {s.task: s.end_s for s in simulate(plan, world, PlainCost(world)).spans()}
    assert ends == pytest.approx({"a": 12.0, "b": 12.0, "c": 4.0}, rel=WITHIN)


def test_a_slow_device_and_a_lost_link_cost_what_they_take() -> None:
    plan = Plan(name="slow", n_ranks=2, groups={"a": single(0), "b": single(1)}, tasks=(
        Task("c", work("a", 10)), Task("t", Transfer(source="a", target="b", nbytes=4), ("c",)),
    ))  # fmt: skip
    world = cluster(2, block=64)
    faults = (Event(4.0, 0.5, ranks=(0,)), Event(18.0, 0.0, links=(0,)), Event(20.0, np.inf, links=(0,)))
    trace = simulate(plan, world, PlainCost(world), faults=faults)
    assert trace.end_s.tolist() == pytest.approx(
        [16.0, 22.0, 22.0], rel=WITHIN
    )  # 4 + 6 / 0.5; 4 bytes around 2 s of nothing


def test_computing_slows_while_bytes_move() -> None:
    plan = Plan(name="overlap", n_ranks=2, groups={"g": flat(2)}, tasks=(
        Task("r", Collective(kind="all_gather", group="g", along=("dp",), nbytes=8)), Task("c", work("g", 10)),
    ))  # fmt: skip
    world = cluster(2, block=64, devices=(device(slowdown=0.25),))
    assert simulate(plan, world, PlainCost(world)).makespan_s == pytest.approx(11.0, rel=WITHIN)  # 4 s at 3/4 speed


def queue(arrival_s: np.ndarray, service_s: np.ndarray) -> np.ndarray:
    """Lindley 1952: departures from one server, first come first served."""
    before = np.cumsum(service_s) - service_s
    return np.maximum.accumulate(arrival_s - before) + before + service_s


def test_a_stream_is_a_queue_with_one_server() -> None:
    """Jobs that come from one rank at random times and are served by another, job by job as Lindley's recursion has it."""
    jobs = 2000
    rng = np.random.default_rng(1)
    gaps, services = rng.exponential(1.0, jobs), rng.exponential(0.5, jobs)
    seconds = {i + 1: float(s) for i, s in enumerate(np.concatenate([gaps, services]))}
    tasks: list[Task] = []
    for i in range(jobs):
        tasks.append(Task(f"gap{i}", work("a", i + 1)))
        tasks.append(Task(f"job{i}", work("b", jobs + i + 1), (f"gap{i}",)))
    plan = Plan(name="mm1", n_ranks=2, groups={"a": single(0), "b": single(1)}, tasks=tuple(tasks))
    world = cluster(2, block=64)
    trace = simulate(plan, world, PlainCost(world, seconds=seconds))
    served = trace.end_s[np.isin(trace.task, [plan.index[f"job{i}"] for i in range(jobs)])]
    np.testing.assert_allclose(np.sort(served), queue(np.cumsum(gaps), services), rtol=1e-9)


def test_that_queue_waits_as_m_m_1_says() -> None:
    """Mean time in the system 1 / (mu - lambda), over enough jobs for 0.1 %."""
    rng = np.random.default_rng(7)
    total, count, last = 0.0, 0, 0.0
    for _ in range(40):
        arrival, service = last + np.cumsum(rng.exponential(1.0, 1_000_000)), rng.exponential(0.2, 1_000_000)
        leave = queue(arrival, service)
        total, count, last = (
            total + float((leave - arrival).sum()),
            count + len(arrival),
            float(max(arrival[-1], leave[-1])),
        )
    assert total / count == pytest.approx(1 / (1 / 0.2 - 1.0), rel=WITHIN)
