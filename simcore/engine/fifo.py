"""Links that serve one flow at a time, in order of arrival: the alternative to sharing (`sharing: fifo`).

A flow waits in the queue of every link on its way and moves at full rate once it is first in all of them. Flows enter all
their queues at once, so two flows that meet on two links stand in the same order on both and nobody waits in a circle.
"""

from simcore.engine.fluid import set_rate
from simcore.engine.jit import compiled
from simcore.engine.state import State


@compiled
def _begin_if_first(s: State, flow: int) -> None:
    rate = s.nodes[flow].cap
    for edge in range(s.nodes[flow].edge_from, s.nodes[flow].edge_to):
        if s.links[s.edges[edge].link].head != edge:
            return
        rate = min(rate, s.links[s.edges[edge].link].capacity / s.edges[edge].weight)
    set_rate(s, flow, rate, s.clock[0])


@compiled
def enqueue(s: State, flow: int) -> None:
    """Queue `flow` on its links, and begin if nobody is before it."""
    for edge in range(s.nodes[flow].edge_from, s.nodes[flow].edge_to):
        link = s.edges[edge].link
        last = s.links[link].tail
        s.edges[edge].next, s.edges[edge].prev = -1, last
        s.links[link].tail = edge
        if last >= 0:
            s.edges[last].next = edge
        else:
            s.links[link].head = edge
    _begin_if_first(s, flow)


@compiled
def dequeue(s: State, flow: int) -> None:
    """Take `flow` out of its queues and let those begin that are first now."""
    for edge in range(s.nodes[flow].edge_from, s.nodes[flow].edge_to):
        link, after, before = s.edges[edge].link, s.edges[edge].next, s.edges[edge].prev
        if before >= 0:
            s.edges[before].next = after
        else:
            s.links[link].head = after
        if after >= 0:
            s.edges[after].prev = before
        else:
            s.links[link].tail = before
    for edge in range(s.nodes[flow].edge_from, s.nodes[flow].edge_to):
        head = s.links[s.edges[edge].link].head
        if head >= 0:
            _begin_if_first(s, s.edges[head].node)


@compiled
def capacity_changed(s: State, link: int) -> None:
    """The flow in service goes on at its new rate."""
    if s.links[link].head >= 0:
        _begin_if_first(s, s.edges[s.links[link].head].node)
