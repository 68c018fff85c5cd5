"""Similarity against time: experts that are a little less alike, from peers whose uplinks are less asked for.

An extension of ours, to be reported apart from FedMoE-DA: clients choose, among experts that are much alike, those of the largest

    cosine - price * seconds in which the owner's uplink sends all that is asked of it

The seconds depend on what all choose, so they are found by repetition, each time as the mean of what was asked before (fictitious
play). Of all choices met that is taken whose mean cosine, less `price` times the seconds of the busiest uplink, is largest. Weights
are those of (10).
"""

import numpy as np
from numpy.typing import NDArray

from simcore.federated.aggregation import Mixing, softmax
from simcore.federated.exchange import fetches
from simcore.federated.similarity import nearest, unit_rows

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WIDER = 4
"""Candidates for each expert that is asked for."""

REPEATS = 24


def traded(
    gates: NDArray[np.floating], P: int, tau: float, *, price: float, expert_B: float, up_B_per_s: Floats
) -> Mixing:
    """`P` experts for each, besides its own, as the module says; `price` is cosine per second, `up_B_per_s` by client."""
    clients, experts, _ = gates.shape
    near = nearest(unit_rows(gates), WIDER * P + 1)
    row = np.repeat(np.arange(clients * experts), np.diff(near.ptr))
    owner = near.column // experts
    own = near.column == row
    load_s = np.zeros(clients)
    best, most = None, -np.inf
    for i in range(REPEATS):
        worth = near.cosine - price * load_s[owner]
        found = _chosen(near.ptr, row, near.column, near.cosine, own, P, worth, tau, experts)
        asked_s = np.bincount(fetches(found).source, minlength=clients) * expert_B / up_B_per_s
        value = float(found.cosine.mean() - price * asked_s.max())
        if value > most:
            best, most = found, value
        load_s += (asked_s - load_s) / (i + 1)
    assert best is not None
    return best


def _chosen(
    ptr: Ints,
    row: Ints,
    column: Ints,
    cosine: Floats,
    own: NDArray[np.bool_],
    P: int,
    worth: Floats,
    tau: float,
    experts: int,
) -> Mixing:
    """The expert itself and the `P` of most worth; equal ones by their number."""
    order = np.lexsort((column, -np.where(own, np.inf, worth), row))
    place = np.arange(len(row)) - ptr[row]  # rows stay where they are
    kept = np.sort(order[place <= P])
    counts = np.bincount(row[kept], minlength=len(ptr) - 1)
    new = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Mixing(
        experts=experts, ptr=new, source=column[kept], weight=softmax(new, cosine[kept], tau), cosine=cosine[kept]
    )
