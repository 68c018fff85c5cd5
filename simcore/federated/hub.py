"""Many flows over one link, that of the server, each with a limit of its own: max-min rates at a price that grows with log(flows).

Flows of equal limits run at equal rates whatever comes and goes. So each kind keeps a count of the bytes that a flow of it has got
since the start, and a flow ends when the count reaches its own mark: an event costs as many steps as there are kinds, not flows.
While clients talk with the server they share no other link with anybody, so this is what the engine's fluid model finds, too.
"""

import numpy as np
from numpy.typing import NDArray

from simcore.engine.jit import compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def shared(capacity: float, cap: Floats, start_s: Floats, nbytes: Floats, gone_s: Floats) -> Floats:
    """(flows,) when each flow ends, NaN for those that are gone before.

    A flow has rate `cap` alone, begins at `start_s`, and is taken away at `gone_s` (inf: never).
    """
    caps, kind = np.unique(cap, return_inverse=True)
    starts = np.argsort(start_s, kind="stable")
    leaves = np.argsort(gone_s, kind="stable")
    kind = kind.reshape(-1).astype(np.int64)
    members = np.bincount(kind, minlength=len(caps))
    first = (np.cumsum(members) - members).astype(np.int64)
    end: Floats = _play(capacity, caps, kind, first, start_s, nbytes, gone_s, starts, leaves)
    return end


@compiled
def push(mark: Floats, flow: Ints, first: int, size: int, key: float, what: int) -> None:
    """Into the binary heap of `size` entries that begins at `first`."""
    i = size
    while i > 0 and mark[first + (i - 1) // 2] > key:
        mark[first + i], flow[first + i] = mark[first + (i - 1) // 2], flow[first + (i - 1) // 2]
        i = (i - 1) // 2
    mark[first + i], flow[first + i] = key, what


@compiled
def pop(mark: Floats, flow: Ints, first: int, size: int) -> None:
    """Take the least of the `size` entries from `first` on away."""
    key, what = mark[first + size - 1], flow[first + size - 1]
    i = 0
    while 2 * i + 1 < size - 1:
        child = 2 * i + 1
        if child + 1 < size - 1 and mark[first + child + 1] < mark[first + child]:
            child += 1
        if mark[first + child] >= key:
            break
        mark[first + i], flow[first + i] = mark[first + child], flow[first + child]
        i = child
    mark[first + i], flow[first + i] = key, what


@compiled
def _rates(capacity: float, caps: Floats, active: Ints, rate: Floats) -> None:
    """Progressive filling: the smallest limits first; `caps` ascend."""
    left, many = capacity, active.sum()
    for k in range(len(caps)):
        if many == 0 or caps[k] * many <= left:
            rate[k] = caps[k]
        else:
            rate[k] = min(left / many, caps[k])
        left -= rate[k] * active[k]
        many -= active[k]


@compiled
def _next_end(
    now: float,
    first: Ints,
    size: Ints,
    mark: Floats,
    flow: Ints,
    phase: Ints,
    got: Floats,
    rate: Floats,
) -> tuple[float, int]:
    """When the next flow ends and of which kind it is, infinite and -1 for none; flows that are over leave the heaps."""
    due, which = np.inf, -1
    for k in range(len(first)):
        while size[k] > 0 and phase[flow[first[k]]] == 2:
            pop(mark, flow, first[k], size[k])
            size[k] -= 1
        if size[k] > 0:
            at = now + max(mark[first[k]] - got[k], 0.0) / rate[k]
            if at < due:
                due, which = at, k
    return due, which


@compiled
def _play(
    capacity: float,
    caps: Floats,
    kind: Ints,
    first: Ints,
    start_s: Floats,
    nbytes: Floats,
    gone_s: Floats,
    starts: Ints,
    leaves: Ints,
) -> Floats:
    n, kinds = len(kind), len(caps)
    end = np.full(n, np.nan)
    phase = np.zeros(n, dtype=np.int64)  # 0 to come, 1 under way, 2 over
    mark, flow = np.empty(n), np.empty(n, dtype=np.int64)
    size, active = np.zeros(kinds, dtype=np.int64), np.zeros(kinds, dtype=np.int64)
    got, rate = np.zeros(kinds), caps.copy()
    now, i, j = 0.0, 0, 0
    while True:
        due, which = _next_end(now, first, size, mark, flow, phase, got, rate)
        begins = start_s[starts[i]] if i < n else np.inf
        leave = gone_s[leaves[j]] if j < n else np.inf
        then = min(due, min(begins, leave))
        if then == np.inf:
            return end
        for k in range(kinds):
            if active[k] > 0:
                got[k] += rate[k] * (then - now)
        now = then
        if due == then:
            f = flow[first[which]]
            got[which] = mark[first[which]]
            end[f], phase[f] = now, 2
            active[which] -= 1
        elif begins == then:
            f, k = starts[i], kind[starts[i]]
            i += 1
            if phase[f] == 0:
                phase[f] = 1
                push(mark, flow, first[k], size[k], got[k] + nbytes[f], f)
                size[k] += 1
                active[k] += 1
        else:
            f = leaves[j]
            j += 1
            if phase[f] == 1:
                active[kind[f]] -= 1
            phase[f] = 2
        _rates(capacity, caps, active, rate)
