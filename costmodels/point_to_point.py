"""One rank sends to another over one link (or a way of several, of which the slowest decides)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from costmodels import fitted as tables
from costmodels.specs import LinkSpec

Number = Any
"""A float or an array of floats."""

RDMA = ("infiniband", "roce", "efa")
"""Kinds of network where a send goes over fewer connections than a collective and leaves some of the port empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendConstants:
    """What sends over all links share, fitted."""

    send_share: float = 0.75
    """Share of a port that a send between hosts reaches, of what a collective does."""


def send_constants(found: Mapping[str, Any] | None = None) -> SendConstants:
    """From a fitted table, by default the one in `costmodels/fitted`."""
    return _constants() if found is None else _read(found)


@lru_cache(maxsize=1)
def _constants() -> SendConstants:
    return _read(tables.load("collectives"))


def _read(found: Mapping[str, Any]) -> SendConstants:
    known = found["parameters"]
    return SendConstants(**{f.name: float(known[f.name]) for f in fields(SendConstants)})


def filled_rate(moving_s: Number, nbytes: Number, ramp_s: Number) -> Number:
    """Bytes per second once the filling of the pipeline is counted in, inf where no bytes move.

    Bytes that would take `moving_s` move in chunks through steps; with the best size of chunks that takes 2 sqrt(moving_s ramp_s)
    longer. (k chunks through s steps of latency a: (k + s) (a + moving_s / k), least at k = sqrt(s moving_s / a).)
    """
    taken_s = moving_s + 2 * np.sqrt(moving_s * ramp_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.greater(taken_s, 0.0), np.divide(nbytes, taken_s), np.inf)


def send_recv(nbytes: float, link: LinkSpec, *, inside_host: bool) -> float:
    """Seconds of a send and its receive over `link`: launch and handshake, the way of the first byte, and all bytes."""
    rate = send_rate(nbytes, link.B_per_s * link.efficiency, link, inside_host=inside_host)
    return link.start_s + link.latency_s + nbytes / rate


def send_rate(nbytes: float, B_per_s: float, link: LinkSpec, *, inside_host: bool) -> float:
    """Bytes per second over a way whose slowest link carries `B_per_s`. A send is one copy after the other: measurements show
    no pipeline to fill."""
    return B_per_s * (send_constants().send_share if link.kind in RDMA and not inside_host and nbytes else 1.0)
