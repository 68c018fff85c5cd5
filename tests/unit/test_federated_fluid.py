"""Flows played from arrays end when the engine says, whatever shares links, waits, dies or stalls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simcore.engine.player import IDLE, advance, begin, kill, set_capacity
from simcore.engine.state import FLOW, JOIN, State, new_state
from simcore.federated.events import Halts, played
from simcore.federated.fluid import sharing

Floats = NDArray[np.float64]

CLIENTS = 6


def drawn(rng: np.random.Generator, flows: int) -> dict[str, NDArray[np.generic]]:
    """Flows among a few clients: over the sender's link, one of two in the middle or none, and the receiver's."""
    source = rng.integers(0, CLIENTS, flows)
    target = (source + rng.integers(1, CLIENTS, flows)) % CLIENTS
    middle = rng.integers(-1, 2, flows)
    way = np.stack([source, np.where(middle < 0, -1, 2 * CLIENTS + middle), CLIENTS + target], axis=1)
    way[rng.random(flows) < 0.1] = -1  # links that hold nobody back are left out
    wait_s = rng.integers(0, 4, flows).astype(float)
    wait_s[rng.random(flows) < 0.1] = np.nan
    pairs = [(a, b) for b in range(1, flows) for a in rng.integers(0, b, rng.integers(0, 3)) if rng.random() < 0.4]
    return {
        "source": source,
        "target": target,
        "nbytes": rng.integers(0, 9, flows).astype(float),
        "cap_B_per_s": rng.integers(1, 6, flows).astype(float),
        "latency_s": rng.integers(0, 3, flows) / 4,
        "wait_s": wait_s,
        "way": way,
        "capacity_B_per_s": rng.integers(1, 8, 2 * CLIENTS + 2).astype(float),
        "after": np.unique(np.array(pairs, dtype=np.int64).reshape(-1, 2), axis=0),
    }


def halted(flows: dict[str, NDArray[np.generic]], stops: list[tuple[float, int, bool]]) -> Halts:
    where = [
        np.flatnonzero((flows["source"] == c) | (flows["target"] == c)) if dies else np.array([c, CLIENTS + c])
        for _, c, dies in stops
    ]
    return Halts(
        at_s=np.array([s[0] for s in stops]),
        what=np.array([s[1] for s in stops], dtype=np.int64),
        dies=np.array([s[2] for s in stops], dtype=np.bool_),
        ptr=np.cumsum([0, *map(len, where)]),
        where=np.concatenate([*where, np.empty(0)]).astype(np.int64),
    )


def by_the_engine(
    flows: dict[str, NDArray[np.generic]], stops: list[tuple[float, int, bool]], until_s: float
) -> Floats:
    """The same as nodes of the engine: a flow that waits for others and for a time has a node that waits for the time."""
    state, n = as_state(flows), len(flows["source"])
    begin(state, 0.0)
    for at_s, client, dies in stops:
        if at_s >= until_s:
            break
        play_until(state, at_s)
        if dies:
            kill(state, client)
        else:
            for link in (client, CLIENTS + client):
                set_capacity(state, link, 0.0)
    play_until(state, until_s)
    return np.array(state.nodes["end"][:n])


def play_until(state: State, until_s: float) -> None:
    if advance(state, until_s, 1_000_000) == IDLE and np.isfinite(until_s):
        state.clock[0] = max(state.clock[0], until_s)


def as_state(flows: dict[str, NDArray[np.generic]]) -> State:
    n, after, way = len(flows["source"]), flows["after"], flows["way"]
    late = np.unique(after[:, 1])
    waits_s = np.nan_to_num(flows["wait_s"])
    own_s = waits_s.copy()
    own_s[late] = 0.0
    before = np.concatenate([after[:, 0], n + np.arange(len(late))])
    following = np.concatenate([after[:, 1], late])
    real, nothing, nodes = way >= 0, np.zeros(len(late)), n + len(late)
    edge_ptr = np.concatenate([[0], np.cumsum(real.sum(axis=1)), np.full(len(late), real.sum())])
    state = new_state(
        kind=np.repeat([FLOW, JOIN], [n, len(late)]),
        work=np.concatenate([flows["nbytes"], nothing]),
        latency=np.concatenate([flows["latency_s"] + own_s, waits_s[late]]),
        cap=np.concatenate([flows["cap_B_per_s"], nothing]),
        quiet=np.ones(nodes, dtype=np.int64),
        members=(
            np.concatenate([np.arange(0, 2 * n + 1, 2), np.full(len(late), 2 * n)]),
            np.stack([flows["source"], flows["target"]], axis=1).ravel(),
        ),
        edges=(edge_ptr.astype(np.int64), way[real], np.ones(int(real.sum()))),
        successors=(
            np.concatenate([[0], np.cumsum(np.bincount(before, minlength=nodes))]).astype(np.int64),
            np.ascontiguousarray(following[np.argsort(before, kind="stable")]),
        ),
        slowdown=np.zeros(CLIENTS),
        capacity=flows["capacity_B_per_s"],
        fifo=False,
    )
    state.nodes["pending"][:n] += np.isnan(flows["wait_s"])
    return state


@given(st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_flows_end_when_the_engine_says(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    flows = drawn(rng, n)
    count = int(rng.integers(0, 4))
    stops = sorted(
        (float(t) + 0.13, int(c), bool(d))
        for t, c, d in zip(
            rng.integers(0, 12, count), rng.permutation(CLIENTS)[:count], rng.random(count) < 0.5, strict=True
        )
    )
    until_s = float(rng.choice([6.5, np.inf]))
    found = played(sharing(**flows, clients=CLIENTS), halted(flows, stops), until_s)
    assert found == pytest.approx(by_the_engine(flows, stops, until_s), rel=1e-9, nan_ok=True)


def test_many_flows_that_start_apart_end_when_the_engine_says() -> None:
    rng = np.random.default_rng(3)
    flows = drawn(rng, 1500)
    flows["wait_s"] = rng.random(1500) * 300
    flows["nbytes"] = rng.random(1500) * 10
    flows["capacity_B_per_s"] = rng.random(2 * CLIENTS + 2) * 5
    found = played(sharing(**flows, clients=CLIENTS), halted(flows, []), np.inf)
    assert not np.isnan(found).any()
    assert found == pytest.approx(by_the_engine(flows, [], np.inf), rel=1e-9)
