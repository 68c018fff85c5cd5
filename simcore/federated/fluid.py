"""Many flows between clients, max-min, from arrays: the engine's model of sharing, with events that cost less.

A flow's rate changes whenever another begins or ends on one of its links, and the engine then moves the flow's own event. Here an
event belongs to a link, the first on a flow's way that can hold it back, and is the earliest end among its flows: a change moves
one event instead of as many as there are flows. Levels of links are found as in `simcore.engine.fluid`, whose parts are used.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcore.engine.fluid import ROUNDING, filled, mark, pop_dirty
from simcore.engine.heap import schedule, unschedule
from simcore.engine.jit import compiled
from simcore.engine.state import DIRTY, LINK, N_COUNTS, N_DIRTY, N_TOUCHED, SCRATCH, Records, table

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

WAITING, RUNNING, OVER = 0, 1, 2

FLOW = np.dtype(
    [
        ("cap", "f8"),  # rate alone, bytes per second
        ("left", "f8"),  # bytes not sent at time `since`
        ("rate", "f8"),
        ("since", "f8"),
        ("due", "f8"),
        ("latency", "f8"),
        ("wait", "f8"),  # does not start before
        ("end", "f8"),
        ("source", "i4"),
        ("target", "i4"),
        ("home", "i4"),  # the first link of its way, -1 for none
        ("pending", "i4"),  # flows that it waits for; one more if it never starts
        ("phase", "i1"),
        ("is_touched", "i1"),
    ]
)
NODE = np.dtype([("due", "f8"), ("order", "i8"), ("slot", "i8"), ("is_stale", "i8")])  # of each link, its next event


class Sharing(NamedTuple):
    """Flows and links at one time; see `sharing`. The engine's functions work on `nodes`, `heap`, `links`, `dirty`, `counts`."""

    flows: Records
    way: NDArray[np.int32]  # (flows, most) contended links, -1 where a way is shorter
    place: NDArray[np.int32]  # (flows, most) where a running flow stands in `on` of that link
    on: NDArray[np.int32]  # flows of link l that run: on[first[l] : first[l] + running[l]]
    first: Ints
    running: Ints
    nodes: Records
    heap: Ints
    links: Records
    dirty: Records
    scratch: Records
    touched: Ints
    stale: Ints
    counts: Ints
    dead: Bools  # by client
    succ_from: Ints  # flows that wait for flow f: succ[succ_from[f] : succ_from[f + 1]]
    succ: Ints


N_STALE = N_COUNTS
"""A slot of `Sharing.counts` after those of the engine."""


def sharing(
    *,
    source: Ints,
    target: Ints,
    nbytes: Floats,
    cap_B_per_s: Floats,
    latency_s: Floats,
    wait_s: Floats,
    way: Ints,
    capacity_B_per_s: Floats,
    after: Ints,
    clients: int,
) -> Sharing:
    """Flows that have not begun. `way` (flows, most) holds numbers of links in `capacity_B_per_s`, -1 for none.

    `after` (pairs, 2): the second waits for the first. `wait_s` is the earliest start, NaN for never.
    """
    n, links = len(source), len(capacity_B_per_s)
    real = way >= 0
    home = np.where(real.any(axis=1), np.take_along_axis(way, real.argmax(axis=1)[:, None], axis=1)[:, 0], -1)
    first = np.concatenate([[0], np.cumsum(np.bincount(way[real], minlength=links))]).astype(np.int64)
    counts = np.zeros(N_COUNTS + 1, dtype=np.int64)
    return Sharing(
        flows=table(
            FLOW, n, cap=cap_B_per_s, left=nbytes, latency=latency_s, wait=wait_s, due=np.inf, end=np.nan,
            source=source, target=target, home=home, pending=np.bincount(after[:, 1], minlength=n) + np.isnan(wait_s),
        ),
        way=way.astype(np.int32),
        place=np.zeros(way.shape, dtype=np.int32),
        on=np.zeros(int(first[-1]), dtype=np.int32),
        first=first,
        running=np.zeros(links, dtype=np.int64),
        nodes=table(NODE, links, due=np.inf),
        heap=np.full(links, -1, dtype=np.int64),
        links=table(LINK, links, capacity=capacity_B_per_s, level=np.inf),
        dirty=table(DIRTY, links + 1),
        scratch=table(SCRATCH, n + 1),
        touched=np.zeros(n, dtype=np.int64),
        stale=np.zeros(links, dtype=np.int64),
        counts=counts,
        dead=np.zeros(clients, dtype=np.bool_),
        succ_from=np.concatenate([[0], np.cumsum(np.bincount(after[:, 0], minlength=n))]).astype(np.int64),
        succ=after[np.argsort(after[:, 0], kind="stable"), 1],
    )  # fmt: skip


@compiled
def _touch(s: Sharing, f: int) -> None:
    if not s.flows[f].is_touched:
        s.flows[f].is_touched = 1
        s.touched[s.counts[N_TOUCHED]] = f
        s.counts[N_TOUCHED] += 1


@compiled
def doubt(s: Sharing, link: int) -> None:
    """The next event of `link` has to be found again."""
    if not s.nodes[link].is_stale:
        s.nodes[link].is_stale = 1
        s.stale[s.counts[N_STALE]] = link
        s.counts[N_STALE] += 1


@compiled
def join(s: Sharing, f: int) -> None:
    """Flow `f` begins to move on its links."""
    for w in range(s.way.shape[1]):
        link = s.way[f, w]
        if link >= 0:
            s.place[f, w] = s.running[link]
            s.on[s.first[link] + s.running[link]] = f
            s.running[link] += 1
            mark(s, link)
    _touch(s, f)


@compiled
def leave(s: Sharing, f: int) -> None:
    """Flow `f` moves no more."""
    s.flows[f].due = np.inf
    for w in range(s.way.shape[1]):
        link = s.way[f, w]
        if link < 0:
            continue
        s.running[link] -= 1
        last = s.on[s.first[link] + s.running[link]]
        s.on[s.first[link] + s.place[f, w]] = last
        for v in range(s.way.shape[1]):
            if s.way[last, v] == link:
                s.place[last, v] = s.place[f, w]
        mark(s, link)
    doubt(s, s.flows[f].home)


@compiled
def _limit(s: Sharing, f: int, one: int, other: int) -> float:
    """The rate of `f` as far as links but `one` and `other` hold it back."""
    limit: float = s.flows[f].cap
    for w in range(s.way.shape[1]):
        link = s.way[f, w]
        if link >= 0 and link != one and link != other:
            limit = min(limit, s.links[link].level)
    return limit


@compiled
def _water_level(s: Sharing, link: int) -> float:
    demand, n = 0.0, s.running[link]
    for i in range(n):
        limit = _limit(s, s.on[s.first[link] + i], link, link)
        s.scratch[i].rate, s.scratch[i].weight = limit, 1.0
        demand += limit
    return filled(s.scratch, n, float(n), demand, s.links[link].capacity)


@compiled
def _spread(s: Sharing, link: int, old: float) -> None:
    """Mark the links whose flows are held elsewhere by `link` differently than before."""
    new = s.links[link].level
    for i in range(s.running[link]):
        f = s.on[s.first[link] + i]
        _touch(s, f)
        for w in range(s.way.shape[1]):
            other = s.way[f, w]
            if other < 0 or other == link or min(old, new) >= s.links[other].level:
                continue
            limit = _limit(s, f, link, other)
            if min(limit, old) != min(limit, new):
                mark(s, other)


@compiled
def settle(s: Sharing, now: float) -> None:
    """Levels of links, then rates of flows, then the next event of links."""
    while s.counts[N_DIRTY] > 0:
        link = pop_dirty(s)
        old, new = s.links[link].level, _water_level(s, link)
        if old == new or abs(new - old) <= ROUNDING * min(new, old):
            continue
        s.links[link].level = new
        _spread(s, link, old)
    for i in range(s.counts[N_TOUCHED]):
        f = s.touched[i]
        s.flows[f].is_touched = 0
        if s.flows[f].phase == RUNNING:
            _set_rate(s, f, _limit(s, f, -1, -1), now)
    s.counts[N_TOUCHED] = 0
    for i in range(s.counts[N_STALE]):
        _plan_next(s, s.stale[i])
    s.counts[N_STALE] = 0


@compiled
def _set_rate(s: Sharing, f: int, rate: float, now: float) -> None:
    if rate == s.flows[f].rate:
        return
    left = max(s.flows[f].left - s.flows[f].rate * (now - s.flows[f].since), 0.0)
    s.flows[f].left, s.flows[f].since, s.flows[f].rate = left, now, rate
    if left == 0.0:
        s.flows[f].due = now
    else:
        s.flows[f].due = now + left / rate if rate > 0.0 else np.inf
    doubt(s, s.flows[f].home)


@compiled
def _plan_next(s: Sharing, link: int) -> None:
    s.nodes[link].is_stale = 0
    due = np.inf
    for i in range(s.running[link]):
        f = s.on[s.first[link] + i]
        if s.flows[f].home == link:
            due = min(due, s.flows[f].due)
    if due < np.inf:
        schedule(s, link, due)
    else:
        unschedule(s, link)
