"""What one client gets from a store: requests answered in turn by each stream, streams side by side."""

from dataclasses import dataclass

from costmodels.specs import StoreSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDemand:
    """Takes latency_s + nbytes / cap_B_per_s for a client that is alone at the store."""

    latency_s: float
    cap_B_per_s: float


def demand(store: StoreSpec, requests: int, streams: int, *, write: bool) -> StoreDemand:
    """`requests` of equal size over `streams` parallel streams. Each request waits `request_s` for its first byte; the store's
    limit on requests a second and its own rate bound the sum of all streams."""
    stream = store.stream_write_B_per_s if write else store.stream_read_B_per_s
    whole = store.write_B_per_s if write else store.read_B_per_s
    turns = -(-requests // max(streams, 1))
    latency = turns * store.request_s
    if store.requests_per_s:
        latency = max(latency, requests / store.requests_per_s)
    return StoreDemand(latency_s=latency, cap_B_per_s=min(stream * min(streams, max(requests, 1)), whole))


def seconds(store: StoreSpec, nbytes: float, requests: int = 1, streams: int = 1, *, write: bool) -> float:
    """Seconds for one client alone."""
    found = demand(store, requests, streams, write=write)
    return found.latency_s + nbytes / found.cap_B_per_s
