"""What happens to flows between clients, one event after the other: they begin, end, let others begin, and clients stop."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcore.engine.fluid import mark
from simcore.engine.heap import unschedule
from simcore.engine.jit import compiled
from simcore.engine.state import HEAPED, N_DIRTY, N_TOUCHED
from simcore.federated.fluid import N_STALE, OVER, RUNNING, WAITING, Sharing, doubt, join, leave, settle
from simcore.federated.hub import pop, push

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Halts(NamedTuple):
    """Clients that stop, in order of time: `what[i]` is the client; with `dies` all its flows end, else its links carry nothing.

    `where[ptr[i] : ptr[i + 1]]` are flows of a client that dies, or links.
    """

    at_s: Floats
    what: Ints
    dies: Bools
    ptr: Ints
    where: Ints


def played(s: Sharing, halts: Halts, until_s: float) -> Floats:
    """(flows,) when each ended, NaN for those that had not by `until_s`, or never would."""
    ready_s = np.where(s.flows.pending > 0, np.inf, s.flows.wait + s.flows.latency)
    order = np.argsort(ready_s, kind="stable")
    _play(s, ready_s, order[: int(np.isfinite(ready_s).sum())], halts, until_s)
    return np.array(s.flows.end)


@compiled
def _end(s: Sharing, f: int, now: float, times: Floats, what: Ints, size: int) -> int:
    """Flow `f` has arrived: those that wait for it get their time; returns the new size of the heap of times."""
    s.flows[f].phase, s.flows[f].end = OVER, now
    for i in range(s.succ_from[f], s.succ_from[f + 1]):
        g = s.succ[i]
        s.flows[g].pending -= 1
        if s.flows[g].pending == 0:
            push(times, what, 0, size, max(now, s.flows[g].wait) + s.flows[g].latency, g)
            size += 1
    return size


@compiled
def _begin(s: Sharing, f: int, now: float, times: Floats, what: Ints, size: int) -> int:
    """The latency is over: the volume starts, or arrives at once. Returns the new size of the heap of times."""
    if s.dead[s.flows[f].source] or s.dead[s.flows[f].target]:
        s.flows[f].phase = OVER
    elif s.flows[f].left == 0.0:
        size = _end(s, f, now, times, what, size)
    else:
        s.flows[f].phase, s.flows[f].since = RUNNING, now
        if s.flows[f].home >= 0:
            join(s, f)
        else:
            push(times, what, 0, size, now + s.flows[f].left / s.flows[f].cap, f)
            size += 1
    return size


@compiled
def _halt(s: Sharing, halts: Halts, i: int) -> None:
    if halts.dies[i]:
        s.dead[halts.what[i]] = True
    for j in range(halts.ptr[i], halts.ptr[i + 1]):
        if not halts.dies[i]:
            s.links[halts.where[j]].capacity = 0.0
            mark(s, halts.where[j])
            continue
        f = halts.where[j]
        if s.flows[f].phase == RUNNING and s.flows[f].home >= 0:
            leave(s, f)
        if s.flows[f].phase == RUNNING:
            s.flows[f].phase = OVER


@compiled
def _play(s: Sharing, ready_s: Floats, starts: Ints, halts: Halts, until_s: float) -> None:
    now, size, i, h = 0.0, 0, 0, 0
    times, what = np.empty(len(s.flows) + 1), np.empty(len(s.flows) + 1, dtype=np.int64)
    while True:
        then = ready_s[starts[i]] if i < len(starts) else np.inf
        if size > 0:
            then = min(then, times[0])
        if s.counts[HEAPED] > 0:
            then = min(then, s.nodes[s.heap[0]].due)
        halt = halts.at_s[h] if h < len(halts.at_s) else np.inf
        if then > now and s.counts[N_DIRTY] + s.counts[N_TOUCHED] + s.counts[N_STALE] > 0:
            settle(s, now)
            continue
        if min(then, halt) > until_s or min(then, halt) == np.inf:
            return
        now = min(then, halt)
        if halt < then:
            _halt(s, halts, h)
            h += 1
        elif i < len(starts) and ready_s[starts[i]] == now:
            size = _begin(s, starts[i], now, times, what, size)
            i += 1
        elif size > 0 and times[0] == now:
            f = what[0]
            pop(times, what, 0, size)
            size -= 1
            if s.flows[f].phase == WAITING:
                size = _begin(s, f, now, times, what, size)
            elif s.flows[f].phase == RUNNING:
                size = _end(s, f, now, times, what, size)
        else:
            size = _arrivals(s, s.heap[0], now, times, what, size)


@compiled
def _arrivals(s: Sharing, link: int, now: float, times: Floats, what: Ints, size: int) -> int:
    """Everything of `link` that is due."""
    unschedule(s, link)
    i = 0
    while i < s.running[link]:
        f = s.on[s.first[link] + i]
        if s.flows[f].home == link and s.flows[f].due <= now:
            leave(s, f)
            size = _end(s, f, now, times, what, size)
        else:
            i += 1
    doubt(s, link)
    return size
