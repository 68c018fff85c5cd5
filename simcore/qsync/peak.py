"""The most memory that a class takes in an iteration, step by step of its backward pass.

A kept tensor is taken by who made it, and given back after the last backward step that reads it. Beside what is still kept there
are the gradients on their way and what a step holds for a moment (`LocalGraph.working_B`).
"""

import numpy as np

from costmodels.precision_memory import passes_on
from simcore.qsync.local import FLOAT32, Floats, LocalGraph
from simcore.qsync.settings import Setting, kept_B, kept_tensors


def memory_B(local: LocalGraph, chosen: Setting) -> float:
    """Bytes at the peak."""
    return sum(local.resident_B.values()) + kept_B(local, chosen) + excess_B(local, chosen)


def excess_B(local: LocalGraph, chosen: Setting) -> float:
    """By how much the peak of the backward pass is above what is kept when it begins."""
    rows = np.arange(local.n)
    _, given_back = activations_B(local, chosen)
    later = np.cumsum(given_back[::-1])[::-1] - given_back  # given back by the steps before that of each operator
    beside = gradients_B(local, chosen) + local.working_B[rows, chosen.computes]
    return max(float((beside - later).max(initial=0.0)), 0.0)


def activations_B(local: LocalGraph, chosen: Setting) -> tuple[Floats, Floats]:
    """(n,) bytes taken at each operator's forward step, and given back after each's backward step.

    A tensor is given back after the backward step of its first reader, or of its maker where that keeps it.
    """
    n, edges, rows = local.n, np.arange(len(local.consumer)), np.arange(local.n)
    own = local.own_B[rows, chosen.computes].copy()
    copies = local.edge_B[edges, chosen.output[local.producer], chosen.computes[local.consumer]]
    np.add.at(own, local.consumer, copies)
    tensors = np.where(kept_tensors(local, chosen), local.tensor_B[rows, chosen.output], 0.0)
    last = np.where(local.kept, rows, n)
    np.minimum.at(last, local.root[local.producer[local.keeps]], local.consumer[local.keeps])
    last = np.where(last < n, last, rows)
    given_back = own.copy()
    np.add.at(given_back, last, tensors)
    return own + tensors, given_back


def gradients_B(local: LocalGraph, chosen: Setting) -> Floats:
    """(n,) bytes of gradients of results that exist during each operator's backward step.

    One exists after the backward step of its last reader (during it, it is part of `working_B`) and until that of its maker. Sums
    pass theirs on to what they add, and views have none of their own.
    """
    n, trains = local.n, np.array([o.differentiable for o in local.graph])
    home = local.root.copy()
    for i in reversed(range(n)):
        if passes_on(local.graph.operators[i]):
            own = local.root[local.producer[local.edges_into[i]]]
            alone = [p for p in own.tolist() if (local.root[local.producer] == p).sum() == 1]
            home[alone] = home[i]
    home = _settled(home)
    first, last = np.full(n, n), np.full(n, -1)
    np.minimum.at(first, home[trains], np.flatnonzero(trains))
    readers = trains[local.consumer] & trains[local.producer]
    np.maximum.at(last, home[local.producer[readers]], local.consumer[readers] - 1)
    np.maximum.at(last, home[trains], np.flatnonzero(trains))
    size = local.tensor_B[np.arange(n), np.where(chosen.output >= 0, chosen.output, FLOAT32)]
    found = np.zeros(n + 1)
    for i in np.unique(home[trains]).tolist():
        found[first[i]] += size[i]
        found[last[i] + 1 if last[i] < n else n] -= size[i]
    return np.cumsum(found)[:n]


def _settled(home: np.ndarray) -> np.ndarray:
    """Follow each entry to the one that stands for itself."""
    while (home[home] != home).any():
        home = home[home]
    return home
