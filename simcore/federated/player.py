"""Flows between clients and the server, played by the engine's max-min player straight from arrays.

A round of 10,000 clients is some hundred thousand flows. As tasks of a plan they would be as many objects; here they are rows,
with the same links, latencies and rates, so that times agree with the engine's to the last digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simcore.federated.events import Halts, played
from simcore.federated.fluid import sharing
from simcore.federated.hub import shared
from simcore.federated.links import Links, Ways

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """At `at_s` the computer of a client dies (`dies`), or its links carry nothing any more."""

    at_s: float
    client: int
    dies: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """(flows,) each. A flow starts at `wait_s` (NaN: never), or when the last that it waits for has ended, whichever is later.

    `after` (pairs, 2): the second of each pair waits for the first.
    """

    source: Ints
    target: Ints
    nbytes: Ints
    wait_s: Floats
    after: Ints


def play(links: Links, traffic: Traffic, *, stops: Sequence[Stop] = (), until_s: float = np.inf) -> Floats:
    """(flows,) when each ended, NaN for those that had not by `until_s`, or never would."""
    if len(traffic.source) == 0:
        return np.empty(0)
    ways = links.ways(traffic.source, traffic.target, traffic.nbytes)
    stops = sorted((s for s in stops if s.at_s < until_s), key=lambda s: (s.at_s, s.client))
    used, way = _contended(links, ways, [s.client for s in stops if not s.dies])
    flows = sharing(
        source=traffic.source,
        target=traffic.target,
        nbytes=traffic.nbytes.astype(np.float64),
        cap_B_per_s=ways.cap_B_per_s,
        latency_s=ways.latency_s,
        wait_s=traffic.wait_s,
        way=way,
        capacity_B_per_s=links.capacity_B_per_s[used],
        after=traffic.after,
        clients=links.cluster.n_ranks,
    )
    return played(flows, _halts(links, traffic, stops, used), until_s)


def to_clients(links: Links, clients: Ints, nbytes: Ints, start_s: Floats, gone_s: Floats) -> Floats:
    """(clients,) when what the server sends to each from `start_s` on has come, NaN for those that are `gone_s` before."""
    ways = links.ways(np.full_like(clients, links.server), clients, nbytes)
    return _through(links, ways, 0, nbytes, start_s, gone_s)


def to_server(links: Links, clients: Ints, nbytes: Ints, start_s: Floats, gone_s: Floats) -> Floats:
    """The same the other way; a `start_s` of NaN is never."""
    ways = links.ways(clients, np.full_like(clients, links.server), nbytes)
    return _through(links, ways, 1, nbytes, start_s, gone_s)


def _through(links: Links, ways: Ways, port: int, nbytes: Ints, start_s: Floats, gone_s: Floats) -> Floats:
    """Flows over the server's link out (`port` 0) or in (1)."""
    own = links.cluster.fabric.net_ports(np.array([links.server]))[port]
    begins_s = np.nan_to_num(start_s + ways.latency_s, nan=np.inf)
    return shared(float(links.capacity_B_per_s[own[0]]), ways.cap_B_per_s, begins_s, nbytes.astype(np.float64), gone_s)


def link_bytes(links: Links, traffic: Traffic) -> Floats:
    """(links,) bytes over each if all flows arrive."""
    route = links.cluster.fabric.routes(traffic.source, traffic.target)
    size = np.broadcast_to(traffic.nbytes[:, None], route.shape)
    real = route >= 0
    return np.bincount(route[real], size[real], minlength=len(links.capacity_B_per_s)).astype(np.float64)


def _contended(links: Links, ways: Ways, stalled: list[int]) -> tuple[Ints, Ints]:
    """Links that may hold a flow back, and `ways.route` in numbers of these: (links,), (flows, most)."""
    route, capacity = ways.route, links.capacity_B_per_s
    real = route >= 0
    rate = np.broadcast_to(ways.cap_B_per_s[:, None], route.shape)
    contended = np.bincount(route[real], rate[real], minlength=len(capacity)) > capacity * (1 + 1e-9)
    contended[_ports(links, stalled)] = True  # any other link that all its flows together cannot fill holds nobody back
    number = np.cumsum(contended) - 1
    real &= contended[np.maximum(route, 0)]
    return np.flatnonzero(contended), np.where(real, number[np.maximum(route, 0)], -1)


def _ports(links: Links, clients: Sequence[int]) -> Ints:
    return np.concatenate(links.cluster.fabric.net_ports(np.array(clients, dtype=np.int64)))


def _halts(links: Links, traffic: Traffic, stops: Sequence[Stop], used: Ints) -> Halts:
    """`stops` in order, with the flows of those that die and the links of those that stall."""
    dying = np.zeros(links.cluster.n_ranks, dtype=bool)
    dying[[s.client for s in stops if s.dies]] = True
    ends = np.concatenate([traffic.source, traffic.target])
    flow = np.flatnonzero(dying[ends])
    flow = flow[np.argsort(ends[flow], kind="stable")]
    owner = ends[flow]
    where = []
    for stop in stops:
        if stop.dies:
            a, b = np.searchsorted(owner, [stop.client, stop.client + 1])
            where.append(flow[a:b] % len(traffic.source))
        else:
            where.append(np.searchsorted(used, _ports(links, [stop.client])))
    return Halts(
        at_s=np.array([s.at_s for s in stops], dtype=np.float64),
        what=np.array([s.client for s in stops], dtype=np.int64),
        dies=np.array([s.dies for s in stops], dtype=np.bool_),
        ptr=np.cumsum([0, *(len(w) for w in where)]).astype(np.int64),
        where=np.concatenate([*where, np.empty(0)]).astype(np.int64),
    )
