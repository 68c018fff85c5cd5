"""A binary heap of nodes by due time that knows where each node is, so that a changed rate moves its event in place."""

from simcore.engine.jit import compiled
from simcore.engine.state import HEAPED, ORDER, Queue


@compiled
def _before(s: Queue, a: int, b: int) -> bool:
    if s.nodes[a].due != s.nodes[b].due:
        return bool(s.nodes[a].due < s.nodes[b].due)
    return bool(s.nodes[a].order < s.nodes[b].order)


@compiled
def _up(s: Queue, node: int, i: int) -> None:
    while i > 0:
        parent = (i - 1) >> 1
        if not _before(s, node, s.heap[parent]):
            break
        s.heap[i] = s.heap[parent]
        s.nodes[s.heap[i]].slot = i
        i = parent
    s.heap[i] = node
    s.nodes[node].slot = i


@compiled
def _down(s: Queue, node: int, i: int) -> None:
    n = s.counts[HEAPED]
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and _before(s, s.heap[child + 1], s.heap[child]):
            child += 1
        if not _before(s, s.heap[child], node):
            break
        s.heap[i] = s.heap[child]
        s.nodes[s.heap[i]].slot = i
        i = child
    s.heap[i] = node
    s.nodes[node].slot = i


@compiled
def schedule(s: Queue, node: int, due: float) -> None:
    """Put `node` into the heap at time `due`, or move it there."""
    if s.nodes[node].slot >= 0:
        earlier = due < s.nodes[node].due
        s.nodes[node].due = due
        if earlier:
            _up(s, node, s.nodes[node].slot)
        else:
            _down(s, node, s.nodes[node].slot)
        return
    s.nodes[node].due = due
    s.nodes[node].order = s.counts[ORDER]
    s.counts[ORDER] += 1
    s.counts[HEAPED] += 1
    _up(s, node, s.counts[HEAPED] - 1)


@compiled
def unschedule(s: Queue, node: int) -> None:
    """Take `node` out of the heap if it is there."""
    i = s.nodes[node].slot
    if i < 0:
        return
    s.nodes[node].slot = -1
    s.counts[HEAPED] -= 1
    last = s.heap[s.counts[HEAPED]]
    if last != node:
        if _before(s, last, node):
            _up(s, last, i)
        else:
            _down(s, last, i)
