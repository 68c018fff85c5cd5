"""Plays a plan on a model of a cluster: the only file that knows SimPy.

The player runs inside a SimPy process: it plays its own events up to the next SimPy event without touching SimPy. Faults are
ordinary SimPy processes, and so may be whatever a user adds.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from costmodels.ring import ring_steps
from simcore.checks import check
from simcore.cluster import Cluster
from simcore.engine.grouping import Partition, first_members
from simcore.engine.lowering import Program, Rows, lower
from simcore.engine.op_table import OpTable, op_table
from simcore.engine.placement import Costs, Demands, Disturbed, Sites, contended_uses, split
from simcore.engine.player import IDLE, QUESTION, REACHED, advance, answer, begin, kill, set_capacity, set_speed
from simcore.engine.recording import Played, record
from simcore.engine.state import ASKED, FINISHED, State, new_state
from simcore.errors import PlanError, Problem
from simcore.faults import Event, touched
from simcore.plan import Plan
from simcore.trace import Trace

MOST_SPANS = 20_000_000
EVENTS_AT_A_TIME = 100_000  # between two reports of progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan lowered onto the classes of a cluster, ready to be played."""

    plan: Plan
    cluster: Cluster
    classes: Partition
    table: OpTable
    program: Program
    state: Callable[[], State]


def simulate(
    plan: Plan,
    cluster: Cluster,
    cost: Costs,
    *,
    faults: Sequence[Event] = (),
    iterations: int | None = None,
    expand: bool = False,
    sharing: str = "max_min",
    skew: bool = False,
    progress: Callable[[float, str], None] | None = None,
) -> Trace:
    """The trace of `iterations` of the plan (default: as many as its workload says).

    `expand` simulates every rank by itself instead of one for each class. `sharing` is "max_min" or "fifo"; `skew` lets the
    members of an all-reduce end when their own ring steps end. Both tell every rank apart. Raises `PlanError` or `DoesNotFit`.
    """
    check(plan, cluster)
    rounds = iterations if iterations is not None else int(plan.workload.get("iterations", 1))
    if rounds * len(plan.tasks) > MOST_SPANS:
        given = f"{rounds} iterations of {len(plan.tasks)} tasks"
        raise PlanError(
            "a trace too long", [Problem("workload.iterations", given, f"at most {MOST_SPANS} tasks in a run")]
        )
    prepared = prepare(
        plan, cluster, cost, faults, alone=expand or skew or sharing == "fifo", sharing=sharing, skew=skew
    )
    played = _play(prepared, faults, rounds, progress)
    return record(plan, cluster, prepared.classes, prepared.table, prepared.program, played, 1 if faults else rounds)


def prepare(
    plan: Plan, cluster: Cluster, cost: Costs, faults: Sequence[Event], *, alone: bool, sharing: str, skew: bool
) -> Prepared:
    """Everything that does not depend on time."""
    _check_cores(cluster, faults, sharing)
    ops, op_of = plan.distinct_ops
    sites = Sites(plan, ops, cost, skew=skew, shared_cores=cluster.cores is not None)
    demands = Demands(ops, sites, cost)
    disturbed = _disturbed(faults, plan, cluster)
    uses = contended_uses(ops, sites, demands, cost, disturbed.lowest)
    classes = split(plan, cluster, sites, uses, disturbed, alone)
    table = op_table(ops, sites, demands, uses, classes, cluster, cost)
    program = lower(plan, table, op_of)
    capacity = cluster.capacity[first_members(classes.links)]
    slowdown = np.array([cluster.device(r).overlap_slowdown for r in first_members(classes.ranks)], dtype=np.float64)
    return Prepared(
        plan=plan,
        cluster=cluster,
        classes=classes,
        table=table,
        program=program,
        state=lambda: _state(table, program, slowdown, capacity, fifo=sharing == "fifo"),
    )


def _check_cores(cluster: Cluster, faults: Sequence[Event], sharing: str) -> None:
    """Raises `PlanError` for what is not modelled where ranks share cores."""
    if cluster.cores is None:
        return
    problems = []
    if any(event.ranks and event.factor for event in faults):
        problems.append(Problem("faults", "a rank that computes slower", "ranks that die, links that are slower"))
    if sharing == "fifo":
        problems.append(Problem("simulator.sharing", "fifo", "max_min"))
    if problems:
        raise PlanError("ranks that share cores", problems)


def _disturbed(faults: Sequence[Event], plan: Plan, cluster: Cluster) -> Disturbed:
    capacity = cluster.capacity
    ranks, links = touched(faults, plan.n_ranks, len(capacity))
    factor, lowest = np.ones(len(capacity)), np.ones(len(capacity))
    for event in faults:
        at = list(event.links)
        factor[at] = 1.0 if np.isinf(event.factor) else factor[at] * event.factor
        lowest[at] = np.minimum(lowest[at], factor[at])
    return Disturbed(ranks, links, capacity * lowest)


def _state(
    table: OpTable, program: Program, slowdown: NDArray[np.float64], capacity: NDArray[np.float64], *, fifo: bool
) -> State:
    rows, of_node = table.rows, program.table_row
    members = Rows.of([np.array(r.classes, dtype=np.int64) for r in rows])
    edges = Rows.of([np.fromiter(r.links, dtype=np.int64, count=len(r.links)) for r in rows])
    weights = np.array([w for r in rows for w in r.links.values()], dtype=np.float64)
    edge_rows, positions = edges.take(of_node)
    return new_state(
        kind=np.array([r.kind for r in rows], dtype=np.int64)[of_node],
        work=np.array([r.work for r in rows], dtype=np.float64)[of_node],
        latency=np.array([r.latency for r in rows], dtype=np.float64)[of_node],
        cap=np.array([r.cap for r in rows], dtype=np.float64)[of_node],
        quiet=np.array([r.quiet for r in rows], dtype=np.int64)[of_node],
        members=members.take(of_node)[0],
        edges=(edge_rows.ptr, edge_rows.values, weights[positions]),
        successors=program.successors,
        slowdown=slowdown,
        capacity=capacity,
        fifo=fifo,
    )


def _play(
    prepared: Prepared, faults: Sequence[Event], rounds: int, progress: Callable[[float, str], None] | None
) -> list[Played]:
    """Iterations one after the other; without faults they are all alike, so one is played."""
    env = simpy.Environment()
    world = _World(prepared)
    for event in faults:
        env.process(_strike(env, event, world))
    played: list[Played] = []
    env.run(until=env.process(_iterations(env, world, rounds if faults else 1, played, progress)))
    return played


class _World:
    """The iteration that is on, and what faults have done so far."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        classes = prepared.classes
        self.capacity = prepared.cluster.capacity[first_members(classes.links)]
        self.share = np.ones(len(self.capacity))
        self.speed = np.ones(classes.n_classes)
        self.dead = np.zeros(classes.n_classes, dtype=np.int64)
        self.state = prepared.state()

    def next_iteration(self, now_s: float) -> State:
        self.state = self.prepared.state()
        self.state.classes["speed"] = self.speed
        self.state.classes["dead"] = self.dead
        self.state.links["capacity"] = self.capacity * self.share
        begin(self.state, now_s)
        return self.state


def _strike(env: simpy.Environment, event: Event, world: _World) -> Generator[simpy.Event, Any, None]:
    """One fault event, as a process."""
    yield env.timeout(event.at_s)
    state, classes = world.state, world.prepared.classes
    state.clock[0] = env.now
    for c in sorted({int(classes.ranks[r]) for r in event.ranks if r < len(classes.ranks)}):
        if event.factor == 0.0:
            world.dead[c] = 1
            kill(state, c)
        else:
            world.speed[c] *= event.factor
            set_speed(state, c, float(world.speed[c]))
    for link in sorted({int(classes.links[i]) for i in event.links}):
        world.share[link] = 1.0 if np.isinf(event.factor) else world.share[link] * event.factor
        set_capacity(state, link, float(world.capacity[link] * world.share[link]))


def _iterations(
    env: simpy.Environment,
    world: _World,
    rounds: int,
    played: list[Played],
    progress: Callable[[float, str], None] | None,
) -> Generator[simpy.Event, Any, None]:
    """The player as a process: it plays until SimPy has something to say, then lets time pass that far."""
    total = max(len(world.prepared.program.table_row), 1)
    for i in range(rounds):
        state = world.next_iteration(env.now)
        while True:
            why = advance(state, env.peek(), EVENTS_AT_A_TIME)
            if progress is not None:
                progress((i + int(state.counts[FINISHED]) / total) / rounds, f"iteration {i + 1} of {rounds}")
            if why == QUESTION:
                _answer(world.prepared, state)
            if why in (IDLE, REACHED):
                yield env.timeout(float(state.clock[0]) - env.now)
            if why == IDLE:
                if state.counts[FINISHED] == total or env.peek() == float("inf"):
                    break
                yield env.timeout(env.peek() - env.now)  # stalled until something changes, say a link comes back
        played.append(Played(state.nodes["start"], state.nodes["end"]))
        if state.counts[FINISHED] < total:
            return


def _answer(prepared: Prepared, state: State) -> None:
    """Ring steps from the members' own arrivals, for an all-reduce that asked; the steps share its latency and volume evenly."""
    node = int(state.counts[ASKED])
    row = prepared.table.rows[prepared.program.table_row[node]]
    arrivals = np.arange(node + 1, node + 1 + row.ring)
    arrival_s, steps = state.nodes["end"][arrivals], 2 * (row.ring - 1)
    ends_s = arrival_s
    if steps:
        ends_s = ring_steps(arrival_s, row.work, row.latency / steps, row.cap * steps / row.ring)
    state.nodes["start"][arrivals + row.ring] = arrival_s
    answer(state, node, arrivals + row.ring, ends_s)
