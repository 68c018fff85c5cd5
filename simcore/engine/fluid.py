"""Max-min fair rates of flows that share links, kept up to date where something changed.

The allocation is described by a water level for each link: a flow runs at the lowest level on its way, or at its own cap. A
link is consistent if its level is the one at which its flows, each held to min(level, lowest level elsewhere on its way),
just fill it, and infinite if they do not fill it at any level. Levels that are all consistent satisfy the bottleneck condition
(every flow below its cap crosses a full link on which nobody is faster), which only the max-min allocation does
(Bertsekas and Gallager, Data Networks, section 6.5.2). So after a change it suffices to make links consistent again,
lowest level first as in progressive filling, until the change has died away.
"""

import numpy as np

from simcore.engine.heap import schedule, unschedule
from simcore.engine.jit import compiled
from simcore.engine.state import N_DIRTY, N_TOUCHED, RUNNING, Levels, Records, State

ROUNDING = 1e-13  # relative; a level that moves by less has not changed


@compiled
def mark(s: Levels, link: int) -> None:
    """The level of `link` has to be computed again: put it into the heap of dirty links."""
    if s.links[link].is_dirty:
        return
    s.links[link].is_dirty = 1
    key, i = s.links[link].level, s.counts[N_DIRTY]
    s.counts[N_DIRTY] += 1
    while i > 0 and s.dirty[(i - 1) >> 1].key > key:
        s.dirty[i].link, s.dirty[i].key = s.dirty[(i - 1) >> 1].link, s.dirty[(i - 1) >> 1].key
        i = (i - 1) >> 1
    s.dirty[i].link, s.dirty[i].key = link, key


@compiled
def pop_dirty(s: Levels) -> int:
    """The dirty link with the lowest level; it is dirty no more."""
    link: int = s.dirty[0].link
    s.links[link].is_dirty = 0
    s.counts[N_DIRTY] -= 1
    n = s.counts[N_DIRTY]
    moved, key, i = s.dirty[n].link, s.dirty[n].key, 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and s.dirty[child + 1].key < s.dirty[child].key:
            child += 1
        if s.dirty[child].key >= key:
            break
        s.dirty[i].link, s.dirty[i].key = s.dirty[child].link, s.dirty[child].key
        i = child
    s.dirty[i].link, s.dirty[i].key = moved, key
    return link


@compiled
def touch(s: State, flow: int) -> None:
    """The rate of `flow` has to be computed again."""
    if not s.nodes[flow].is_touched:
        s.nodes[flow].is_touched = 1
        s.touched[s.counts[N_TOUCHED]] = flow
        s.counts[N_TOUCHED] += 1


@compiled
def _find_lows(s: State, flow: int) -> None:
    low, low_edge, second = s.nodes[flow].cap, -1, np.inf
    for edge in range(s.nodes[flow].edge_from, s.nodes[flow].edge_to):
        level = s.links[s.edges[edge].link].level
        if level < low:
            low, low_edge, second = level, edge, low
        elif level < second:
            second = level
    s.nodes[flow].low, s.nodes[flow].low_edge, s.nodes[flow].second = low, low_edge, second


@compiled
def join(s: State, flow: int) -> None:
    """Add `flow` to its links."""
    for edge in range(s.nodes[flow].edge_from, s.nodes[flow].edge_to):
        link = s.edges[edge].link
        head = s.links[link].head
        s.edges[edge].next, s.edges[edge].prev = head, -1
        if head >= 0:
            s.edges[head].prev = edge
        s.links[link].head = edge
        mark(s, link)
    _find_lows(s, flow)
    touch(s, flow)


@compiled
def leave(s: State, flow: int) -> None:
    """Take `flow` off its links."""
    for edge in range(s.nodes[flow].edge_from, s.nodes[flow].edge_to):
        link, after, before = s.edges[edge].link, s.edges[edge].next, s.edges[edge].prev
        if after >= 0:
            s.edges[after].prev = before
        if before >= 0:
            s.edges[before].next = after
        else:
            s.links[link].head = after
        mark(s, link)


@compiled
def filled(scratch: Records, n: int, weight: float, demand: float, capacity: float) -> float:
    """Level at which sum of weight * min(level, rate) over `n` rows of `scratch` is `capacity`, infinite if there is none.

    `weight` is the sum of weights, `demand` that of weight * rate. Rows are overwritten.
    """
    left = capacity
    if n == 0 or demand <= left:
        return np.inf
    while True:
        level, kept = left / weight, 0
        for i in range(n):
            if scratch[i].rate < level:
                left -= scratch[i].weight * scratch[i].rate
                weight -= scratch[i].weight
            else:
                scratch[kept].rate, scratch[kept].weight = scratch[i].rate, scratch[i].weight
                kept += 1
        if kept == n:
            return level if level > 0.0 else 0.0
        if kept == 0:
            return np.inf
        n = kept


@compiled
def _water_level(s: State, link: int) -> float:
    """Level at which the flows of `link` fill it: sum of weight * min(level, limit elsewhere) = capacity."""
    n, weight, demand = 0, 0.0, 0.0
    edge = s.links[link].head
    while edge >= 0:
        flow = s.edges[edge].node
        limit = s.nodes[flow].second if s.nodes[flow].low_edge == edge else s.nodes[flow].low
        s.scratch[n].rate, s.scratch[n].weight = limit, s.edges[edge].weight
        weight += s.edges[edge].weight
        demand += s.edges[edge].weight * limit
        n += 1
        edge = s.edges[edge].next
    return filled(s.scratch, n, weight, demand, s.links[link].capacity)


@compiled
def _spread(s: State, link: int, old: float) -> None:
    """Mark the links whose flows are held elsewhere by `link` differently than before."""
    new = s.links[link].level
    edge = s.links[link].head
    while edge >= 0:
        flow = s.edges[edge].node
        touch(s, flow)
        low, low_edge, second = s.nodes[flow].low, s.nodes[flow].low_edge, s.nodes[flow].second
        _find_lows(s, flow)
        for other in range(s.nodes[flow].edge_from, s.nodes[flow].edge_to):
            if other == edge:
                continue
            before = second if low_edge == other else low
            now = s.nodes[flow].second if s.nodes[flow].low_edge == other else s.nodes[flow].low
            if before != now and min(old, new) < s.links[s.edges[other].link].level:
                mark(s, s.edges[other].link)
        edge = s.edges[edge].next


@compiled
def settle(s: State) -> None:
    """Make every link consistent and give every touched flow its rate and its time of arrival."""
    while s.counts[N_DIRTY] > 0:
        link = pop_dirty(s)
        old, new = s.links[link].level, _water_level(s, link)
        if old == new or abs(new - old) <= ROUNDING * min(new, old):
            continue
        s.links[link].level = new
        _spread(s, link, old)
    now = s.clock[0]
    for i in range(s.counts[N_TOUCHED]):
        flow = s.touched[i]
        s.nodes[flow].is_touched = 0
        if s.nodes[flow].phase == RUNNING:
            set_rate(s, flow, s.nodes[flow].low, now)
    s.counts[N_TOUCHED] = 0


@compiled
def set_rate(s: State, node: int, rate: float, now: float) -> None:
    """From `now` on `node` works at `rate`; its event moves to where its work will be done."""
    if rate == s.nodes[node].rate and s.nodes[node].slot >= 0:
        return
    s.nodes[node].left = max(s.nodes[node].left - s.nodes[node].rate * (now - s.nodes[node].since), 0.0)
    s.nodes[node].since, s.nodes[node].rate = now, rate
    if s.nodes[node].left == 0.0:
        schedule(s, node, now)
    elif rate > 0.0:
        schedule(s, node, now + s.nodes[node].left / rate)
    else:
        unschedule(s, node)
