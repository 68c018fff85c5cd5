"""What one client gets from a store: requests answered in turn by each stream, streams side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import ArrayLike

from costmodels.prediction import Floats
from costmodels.specs import StoreSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDemand:
    """Takes latency_s + nbytes / cap_B_per_s for a client that is alone at the store."""

    latency_s: float
    cap_B_per_s: float


def demand(store: StoreSpec, requests: int, streams: int, *, write: bool) -> StoreDemand:
    """`requests` of equal size over `streams` parallel streams. Each request waits `request_s` for its first byte; the store's
    limit on requests a second and its own rate bound the sum of all streams. Files are opened, or committed, side by side."""
    stream = store.stream_write_B_per_s if write else store.stream_read_B_per_s
    whole = store.write_B_per_s if write else store.read_B_per_s
    turns = -(-requests // max(streams, 1))
    latency = turns * store.request_s
    if store.requests_per_s:
        latency = max(latency, requests / store.requests_per_s)
    latency += store.commit_s if write else store.open_s
    return StoreDemand(latency_s=latency, cap_B_per_s=min(stream * min(streams, max(requests, 1)), whole))


def seconds(store: StoreSpec, nbytes: float, requests: int = 1, streams: int = 1, *, write: bool) -> float:
    """Seconds for one client alone."""
    found = demand(store, requests, streams, write=write)
    return found.latency_s + nbytes / found.cap_B_per_s


SHARP = 4.0
"""How abruptly the slower of store and tool takes over; where both are as fast, their rate is 2 ** (-1 / SHARP) of either's."""


def array(store: StoreSpec, drives: float) -> StoreSpec:
    """`drives` of them, striped: rates and requests of all; a stream spreads over a drive at a time."""
    per_second = store.requests_per_s * drives if store.requests_per_s else None
    return replace(
        store,
        read_B_per_s=store.read_B_per_s * drives,
        write_B_per_s=store.write_B_per_s * drives,
        requests_per_s=per_second,
    )


def transfer_seconds(
    nbytes: ArrayLike,
    limits_B_per_s: Sequence[ArrayLike],
    tool_B_per_s: ArrayLike,
    start_s: ArrayLike,
) -> Floats:
    """Seconds in which programs of `tool_B_per_s` in all move `nbytes`; arguments broadcast.

    `limits_B_per_s` are those of the store, of its streams, of its requests and of the hosts' ports, of which the least counts
    (`limits` makes them of a store).
    """
    slowest = np.minimum.reduce([np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(*limits_B_per_s)])
    rate = (slowest**-SHARP + np.asarray(tool_B_per_s, dtype=np.float64) ** -SHARP) ** (-1.0 / SHARP)
    return np.asarray(start_s + np.asarray(nbytes, dtype=np.float64) / rate)


def limits(
    store: StoreSpec, *, write: bool, streams: float = inf, request_B: float = inf
) -> tuple[float, float, float]:
    """Bytes per second of the whole store, of `streams` streams, and of requests of `request_B` each."""
    whole = store.write_B_per_s if write else store.read_B_per_s
    one = store.stream_write_B_per_s if write else store.stream_read_B_per_s
    return whole, one * streams, store.requests_per_s * request_B if store.requests_per_s else inf


def loading_B_per_s(accelerators: float, batch_B: float, compute_s: float, stall: float) -> float:
    """Rate at which training takes batches whose loading hides behind computing: `stall` is what is left of it, as a share of
    a step. It asks for no more, however fast the store."""
    return accelerators * batch_B / (compute_s * (1.0 + stall))
