"""Worst-fit: each item to the candidate that has least so far, largest items first (ByteCheckpoint, section 4.1)."""

from heapq import heapify, heapreplace

import numpy as np

from simcore.checkpoint.shards import Ints, RankSets


def worst_fit(nbytes: Ints, candidates: Ints, sets: RankSets, n_ranks: int) -> Ints:
    """(n,) the rank of each item of `nbytes[i]` bytes, one of `sets[candidates[i]]`.

    Items with one candidate have no choice and count first; equal items and equal ranks are taken in ascending order, so that every
    rank that computes this gets the same.
    """
    chosen = np.full(len(nbytes), -1, dtype=np.int64)
    forced = sets.sizes[candidates] == 1
    chosen[forced] = sets.ranks[sets.starts[:-1][candidates[forced]]]
    load = np.bincount(chosen[forced], weights=nbytes[forced], minlength=n_ranks).astype(np.int64).tolist()
    free = np.flatnonzero(~forced)
    free = free[np.argsort(-nbytes[free], kind="stable")]
    if not len(free):
        return chosen
    which = candidates[free]
    if (which == which[0]).all():
        chosen[free] = _one_set(nbytes[free].tolist(), sets[int(which[0])].tolist(), load)
        return chosen
    starts, stops, ranks = sets.starts[which].tolist(), sets.starts[which + 1].tolist(), sets.ranks.tolist()
    picked = []
    for size, start, stop in zip(nbytes[free].tolist(), starts, stops, strict=True):
        rank = min(ranks[start:stop], key=load.__getitem__)
        load[rank] += size
        picked.append(rank)
    chosen[free] = picked
    return chosen


def _one_set(nbytes: list[int], members: list[int], load: list[int]) -> list[int]:
    """The same where all items have the same candidates, which are kept in a heap."""
    heap = [(load[rank], rank) for rank in members]
    heapify(heap)
    picked = []
    for size in nbytes:
        total, rank = heap[0]
        heapreplace(heap, (total + size, rank))
        picked.append(rank)
    return picked
