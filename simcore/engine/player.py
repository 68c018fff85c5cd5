"""Plays nodes one event after the other: what is ready starts, what is done lets its successors go.

Computing on one device shares it: with k kernels at a time each runs at speed / k, and while bytes move on the device at
(1 - slowdown) of that. Flows have a latency and then a volume at their max-min rate, or at full rate in turn (`fifo`).
"""

from simcore.engine.fifo import capacity_changed, dequeue, enqueue
from simcore.engine.fluid import join, leave, mark, set_rate, settle
from simcore.engine.heap import schedule, unschedule
from simcore.engine.jit import compiled
from simcore.engine.state import (
    ASK,
    ASKED,
    BLOCKED,
    COMPUTE,
    DONE,
    FIFO,
    FINISHED,
    FLOW,
    HEAPED,
    LATENCY,
    N_DIRTY,
    N_TOUCHED,
    RUNNING,
    Floats,
    Ints,
    State,
)

IDLE, REACHED, PAUSED, QUESTION = 0, 1, 2, 3
"""Why `advance` returned: nothing is left to happen, time `until` came, enough events for now, a node of kind ASK is ready."""


@compiled
def _share_device(s: State, c: int) -> None:
    """Everything computing on class `c` goes on at the speed that now holds."""
    if s.classes[c].busy == 0:
        return
    rate = s.classes[c].speed / s.classes[c].busy
    if s.classes[c].moving > 0:
        rate *= 1.0 - s.classes[c].slowdown
    node = s.classes[c].busy_head
    while node >= 0:
        set_rate(s, node, rate, s.clock[0])
        node = s.nodes[node].busy_next


@compiled
def _occupy(s: State, node: int, c: int) -> None:
    head = s.classes[c].busy_head
    s.nodes[node].busy_next, s.nodes[node].busy_prev = head, -1
    if head >= 0:
        s.nodes[head].busy_prev = node
    s.classes[c].busy_head = node
    s.classes[c].busy += 1
    _share_device(s, c)


@compiled
def _vacate(s: State, node: int, c: int) -> None:
    after, before = s.nodes[node].busy_next, s.nodes[node].busy_prev
    if after >= 0:
        s.nodes[after].busy_prev = before
    if before >= 0:
        s.nodes[before].busy_next = after
    else:
        s.classes[c].busy_head = after
    s.classes[c].busy -= 1
    _share_device(s, c)


@compiled
def _move(s: State, node: int) -> None:
    """The latency is over: the volume starts."""
    s.nodes[node].phase, s.nodes[node].since = RUNNING, s.clock[0]
    if s.counts[FIFO]:
        enqueue(s, node)
    elif s.nodes[node].left == 0.0 or s.nodes[node].edge_from == s.nodes[node].edge_to:
        set_rate(s, node, s.nodes[node].cap, s.clock[0])
    else:
        join(s, node)


@compiled
def _count_moving(s: State, node: int, by: int) -> None:
    if s.nodes[node].quiet:
        return
    for i in range(s.nodes[node].member_from, s.nodes[node].member_to):
        c = s.members[i]
        s.classes[c].moving += by
        if s.classes[c].slowdown > 0.0 and s.classes[c].moving == (1 if by > 0 else 0):
            _share_device(s, c)


@compiled
def _start(s: State, node: int) -> None:
    for i in range(s.nodes[node].member_from, s.nodes[node].member_to):
        if s.classes[s.members[i]].dead:
            s.nodes[node].phase = BLOCKED
            return
    now = s.clock[0]
    s.nodes[node].start, s.nodes[node].since, s.nodes[node].phase = now, now, RUNNING
    if s.nodes[node].kind == COMPUTE:
        _occupy(s, node, s.members[s.nodes[node].member_from])
    elif s.nodes[node].kind == FLOW:
        _count_moving(s, node, 1)
        if s.nodes[node].latency > 0.0:
            s.nodes[node].phase = LATENCY
            schedule(s, node, now + s.nodes[node].latency)
        else:
            _move(s, node)
    else:
        schedule(s, node, now + s.nodes[node].latency)


@compiled
def _finish(s: State, node: int) -> None:
    s.nodes[node].phase, s.nodes[node].end = DONE, s.clock[0]
    s.counts[FINISHED] += 1
    if s.nodes[node].kind == COMPUTE:
        _vacate(s, node, s.members[s.nodes[node].member_from])
    elif s.nodes[node].kind == FLOW:
        _count_moving(s, node, -1)
        _release_links(s, node)
    for i in range(s.nodes[node].succ_from, s.nodes[node].succ_to):
        after = s.succ[i]
        s.nodes[after].pending -= 1
        if s.nodes[after].pending == 0:
            _start(s, after)


@compiled
def _release_links(s: State, node: int) -> None:
    if s.counts[FIFO]:
        dequeue(s, node)
    elif s.nodes[node].work > 0.0:
        leave(s, node)


@compiled
def begin(s: State, at_s: float) -> None:
    """Start every node that waits for nothing."""
    s.clock[0] = at_s
    for node in range(len(s.nodes)):
        if s.nodes[node].pending == 0:
            _start(s, node)


@compiled
def advance(s: State, until_s: float, max_events: int) -> int:
    """Play events up to and including time `until_s`; returns why it stopped."""
    for _ in range(max_events):
        n = s.counts[HEAPED]
        if s.counts[N_DIRTY] + s.counts[N_TOUCHED] > 0 and (n == 0 or s.nodes[s.heap[0]].due > s.clock[0]):
            settle(s)
            n = s.counts[HEAPED]
        if n == 0:
            return IDLE
        node = s.heap[0]
        if s.nodes[node].due > until_s:
            s.clock[0] = until_s
            return REACHED
        s.clock[0] = s.nodes[node].due
        unschedule(s, node)
        if s.nodes[node].phase == LATENCY:
            _move(s, node)
        elif s.nodes[node].kind == ASK:
            s.counts[ASKED] = node
            return QUESTION
        else:
            _finish(s, node)
    return PAUSED


@compiled
def set_speed(s: State, c: int, speed: float) -> None:
    """From now on class `c` computes at `speed` times its own rate."""
    s.classes[c].speed = speed
    _share_device(s, c)


@compiled
def set_capacity(s: State, link: int, capacity: float) -> None:
    """From now on `link` carries `capacity` bytes per second."""
    s.links[link].capacity = capacity
    if s.counts[FIFO]:
        capacity_changed(s, link)
    else:
        mark(s, link)


@compiled
def kill(s: State, c: int) -> None:
    """Class `c` stops for good: what it takes part in never ends, and nothing of it starts any more."""
    s.classes[c].dead = 1
    for node in range(len(s.nodes)):
        if s.nodes[node].phase != RUNNING and s.nodes[node].phase != LATENCY:
            continue
        for i in range(s.nodes[node].member_from, s.nodes[node].member_to):
            if s.members[i] != c:
                continue
            if s.nodes[node].kind == FLOW and s.nodes[node].phase == RUNNING:
                _release_links(s, node)
            unschedule(s, node)
            s.nodes[node].phase = BLOCKED
            break


@compiled
def answer(s: State, node: int, nodes: Ints, ends_s: Floats) -> None:
    """Reply to a QUESTION about `node`: each of `nodes` has begun and ends at its time."""
    s.nodes[node].phase, s.nodes[node].end = DONE, s.clock[0]
    s.counts[FINISHED] += 1
    for i in range(len(nodes)):
        s.nodes[nodes[i]].phase = RUNNING
        schedule(s, nodes[i], ends_s[i])
