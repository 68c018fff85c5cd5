"""Flows between clients and the server, played by the engine's max-min player straight from arrays.

A round of 10,000 clients is some hundred thousand flows. As tasks of a plan they would be as many objects; here they are rows,
with the same links, latencies and rates, so that times agree with the engine's to the last digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simcore.engine.player import IDLE, advance, begin, kill, set_capacity
from simcore.engine.state import FLOW, JOIN, State, new_state
from simcore.federated.hub import shared
from simcore.federated.links import Links, Ways

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EVENTS_AT_A_TIME = 1_000_000


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
    state = _state(links, traffic, ways, _stopped(links, stops))
    begin(state, 0.0)
    for stop in sorted(stops, key=lambda s: (s.at_s, s.client)):
        if stop.at_s >= until_s:
            break
        _advance(state, stop.at_s)
        _strike(state, links, stop)
    _advance(state, until_s)
    return np.array(state.nodes["end"][: len(traffic.source)])


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


def _advance(state: State, until_s: float) -> None:
    """Play all events up to `until_s`."""
    while True:
        why = advance(state, until_s, EVENTS_AT_A_TIME)
        if why == IDLE:
            state.clock[0] = max(state.clock[0], until_s) if np.isfinite(until_s) else state.clock[0]
            return
        if state.clock[0] >= until_s:
            return


def _strike(state: State, links: Links, stop: Stop) -> None:
    if stop.dies:
        kill(state, stop.client)
        return
    ranks = np.array([stop.client])
    for port in links.cluster.fabric.net_ports(ranks):
        set_capacity(state, int(port[0]), 0.0)


def _stopped(links: Links, stops: Sequence[Stop]) -> Ints:
    """Links that will carry nothing at some time."""
    ports = links.cluster.fabric.net_ports(np.array([s.client for s in stops if not s.dies], dtype=np.int64))
    return np.concatenate(ports)


def _state(links: Links, traffic: Traffic, ways: Ways, stopped: Ints) -> State:
    n, capacity = len(traffic.source), links.capacity_B_per_s
    route = ways.route
    real = route >= 0
    rate = np.broadcast_to(ways.cap_B_per_s[:, None], route.shape)
    counts = np.bincount(route[real], rate[real], minlength=len(capacity)) > capacity * (1 + 1e-9)
    counts[stopped] = True  # any other link that all its flows together cannot fill holds nobody back
    real &= counts[np.maximum(route, 0)]
    edge_ptr = np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int64)
    late = np.unique(traffic.after[:, 1])  # they wait for a time and for flows: a node of its own waits for the time
    waits_s = np.nan_to_num(traffic.wait_s)
    own_s = waits_s.copy()
    own_s[late] = 0.0
    before = np.concatenate([traffic.after[:, 0], n + np.arange(len(late))])
    following = np.concatenate([traffic.after[:, 1], late])
    nodes, order = n + len(late), np.argsort(before, kind="stable")
    nothing = np.zeros(len(late))
    state = new_state(
        kind=np.repeat([FLOW, JOIN], [n, len(late)]),
        work=np.concatenate([traffic.nbytes.astype(np.float64), nothing]),
        latency=np.concatenate([ways.latency_s + own_s, waits_s[late]]),
        cap=np.concatenate([ways.cap_B_per_s, nothing]),
        quiet=np.ones(nodes, dtype=np.int64),
        members=(
            np.concatenate([np.arange(0, 2 * n + 1, 2), np.full(len(late), 2 * n)]),
            np.stack([traffic.source, traffic.target], axis=1).ravel(),
        ),
        edges=(np.concatenate([edge_ptr, np.full(len(late), edge_ptr[-1])]), route[real], np.ones(int(real.sum()))),
        successors=(
            np.concatenate([[0], np.cumsum(np.bincount(before, minlength=nodes))]).astype(np.int64),
            np.ascontiguousarray(following[order]),
        ),
        slowdown=np.zeros(links.cluster.n_ranks),
        capacity=capacity,
        fifo=False,
    )
    never = np.isnan(traffic.wait_s)
    state.nodes["pending"][:n] += never
    return state
