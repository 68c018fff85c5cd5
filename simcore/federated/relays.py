"""The same experts from cheaper peers: who has fetched an expert may hand it on, so that nobody waits long for a popular one.

What every client receives stays the same; only who sends it changes. Experts are given out most wanted first. Each goes to its
takers from the fastest uplink down, from the holder that could deliver it earliest. A sender serves its takers one after the other,
in the order of the plan: serving them all at once would let nobody hand on anything before all have it.
"""

from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcore.federated.exchange import Fetches

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Relayed(NamedTuple):
    """Fetches with their senders, in an order in which each follows what it waits for.

    `after` (pairs, 2): the second fetch waits for the first, because its sender gets the expert by it or is busy with it.
    """

    fetches: Fetches
    after: Ints
    seconds: float  # after which the last would arrive if nothing else moved


def owners_s(found: Fetches, expert_B: float, up_B_per_s: Floats, down_B_per_s: Floats) -> float:
    """Seconds that the busiest link needs if owners send everything themselves."""
    out = np.bincount(found.source, minlength=len(up_B_per_s)) * expert_B / up_B_per_s
    into = np.bincount(found.target, minlength=len(down_B_per_s)) * expert_B / down_B_per_s
    return float(max(out.max(initial=0.0), into.max(initial=0.0)))


def relayed(found: Fetches, expert_B: float, up_B_per_s: Floats, down_B_per_s: Floats, latency_s: Floats) -> Relayed:
    """Senders for `found`; rates and latencies to the server are by client. Between two clients twice the way to the server lies at
    most, so their sum is taken."""
    takers: dict[int, list[int]] = {}
    for target, expert in zip(found.target.tolist(), found.expert.tolist(), strict=True):
        takers.setdefault(expert, []).append(target)
    owner = dict(zip(found.expert.tolist(), found.source.tolist(), strict=True))
    up, down = up_B_per_s.tolist(), down_B_per_s.tolist()
    wait_s = latency_s.tolist()
    free_s: dict[int, float] = {}
    last: dict[int, int] = {}  # a sender's latest fetch
    seconds = 0.0
    rows: list[tuple[int, int, int]] = []
    after: list[tuple[int, int]] = []
    for expert in sorted(takers, key=lambda e: (-len(takers[e]), e)):
        holders = [(free_s.get(owner[expert], 0.0) + expert_B / up[owner[expert]], owner[expert], 0.0, -1)]
        heapify(holders)  # (would deliver at, holder, has it since, by which fetch)
        for target in sorted(takers[expert], key=lambda t: (-up[t], t)):
            _, sender, since_s, by = heappop(holders)
            begins_s = max(since_s, free_s.get(sender, 0.0))
            ends_s = begins_s + expert_B / min(up[sender], down[target]) + wait_s[sender] + wait_s[target]
            number, seconds = len(rows), max(seconds, ends_s)
            rows.append((target, sender, expert))
            after += [(b, number) for b in {by, last.get(sender, -1)} if b >= 0]
            free_s[sender], last[sender] = ends_s, number
            heappush(holders, (free_s[sender] + expert_B / up[sender], sender, since_s, by))
            ready_s = max(ends_s, free_s.get(target, 0.0))
            heappush(holders, (ready_s + expert_B / up[target], target, ends_s, number))
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Relayed(Fetches(*table.T), np.array(after, dtype=np.int64).reshape(-1, 2), seconds)
