"""Refinement: change several operators of a class at once, some to disturb less, others to pay for it, while that gains anything.

Whether changes keep the limits is decided by settings and replay alone. Which are tried, and when, follows from estimates that add
up: the seconds by which each change alone moves every bucket, and its bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from simcore.qsync.local import Floats, Ints
from simcore.qsync.search_state import State
from simcore.qsync.settings import allotted_B, changed

SMALL = 12
"""Of a class with at most so many operators to choose for, sets of changes are also tried against the estimate."""

SETS = 10_000
"""Most sets of one size; larger sizes than two are left out beyond. Seven operators with three precisions stay below at every size:
no choice of theirs is better than what refinement leaves."""

WORK = 400_000
"""Bound of one refinement: operators replayed, trials times the size of the graph."""

LONGEST = 16
"""Changes in a chain."""

UNLIKELY = 100
"""Sets of changes of a large graph that are tried against the estimate, in each round."""


@dataclass(frozen=True, eq=False)
class Changes:
    """Every change of one operator: what it changes in disturbance, and in what the limits are about.

    `load` has a column for each bucket and one for the end of the backward pass (seconds), and one for memory (bytes).
    """

    operator: Ints  # (m,)
    precision: Ints  # (m,)
    cost: Floats  # (m,)
    load: Floats  # (m, buckets + 2)

    def moves(self, which: Ints) -> list[tuple[int, int]]:
        """Operators and precisions of some changes."""
        return list(zip(self.operator[which].tolist(), self.precision[which].tolist(), strict=True))


def refine(state: State, k: int) -> int:
    """Refine one class; how many sets of changes were taken."""
    of = state.classes[k]
    trials, taken, found = WORK // max(of.local.n, 1), 0, len(of.free) > 0
    small = len(of.free) <= SMALL
    while found and trials > 0:
        found, touched = False, set[int]()
        changes = _changes(state, k)
        trials -= len(changes.operator) // 4 + (0 if small else 20)  # what it costs to estimate, in replays
        for which in _sets(changes, _room(state, k), small):
            operators = set(changes.operator[which].tolist())
            if touched & operators:
                continue
            if touched and not _holds(changes, which, _room(state, k)):
                continue
            trials -= 1
            if state.attempt(k, changes.moves(which)):
                taken, found = taken + 1, True
                touched |= operators
            if trials <= 0:
                break
    return taken


def _changes(state: State, k: int) -> Changes:
    of, now = state.classes[k], state.settings[k]
    steps = of.local.bucket_step[: len(state.replayer.bucket_s)]
    needed_B = allotted_B(of.local, now)
    rows, loads = [], []
    for i in of.free.tolist():
        for p in of.steps[i]:
            if p != now.computes[i]:
                then = changed(of.local, now, i, p)
                forward, backward = (then.device_s - now.device_s).T
                until = np.append(backward[::-1].cumsum()[::-1], 0.0)
                loads.append([*(forward.sum() + until[[*steps, 0]]), allotted_B(of.local, then) - needed_B])
                rows.append((i, p, of.cost[i, p] - of.cost[i, now.computes[i]]))
    operator, precision, cost = zip(*rows, strict=True)
    return Changes(np.array(operator), np.array(precision), np.array(cost), np.array(loads))


def _room(state: State, k: int) -> Floats:
    """(buckets + 2) what is left of each limit."""
    return np.append(
        state.to_spare_s(k), state.classes[k].limit_B - allotted_B(state.classes[k].local, state.settings[k])
    )


def _holds(changes: Changes, which: Ints, room: Floats) -> bool:
    return bool((changes.load[which].sum(axis=0) <= _loosened(room)).all())


def _loosened(room: Floats) -> Floats:
    """Rounding is not a lack of room."""
    rounding: Floats = 1e-9 * np.abs(room) + np.append(np.full(len(room) - 1, 1e-9), 0.5)
    return room + rounding


def _sets(changes: Changes, room: Floats, small: bool) -> Iterator[Ints]:
    """Sets of changes that disturb less together, those first that the estimate lets through."""
    m, most = len(changes.operator), len(set(changes.operator.tolist()))
    sizes = [size for size in range(1, most + 1) if size <= 2 or comb(m, size) <= SETS]
    yield from _ordered(changes, room, sizes, None if small else UNLIKELY)
    yield from _chains(changes, room)


def _ordered(changes: Changes, room: Floats, sizes: Sequence[int], unlikely: int | None) -> Iterator[Ints]:
    """By falling gain: first those within the estimate, then (at most `unlikely`) others."""
    m, kept = len(changes.operator), []
    for size in sizes:
        if size == 2:
            sets = np.stack(np.triu_indices(m, 1), axis=1)
        else:
            sets = np.array(list(combinations(range(m), size)), dtype=np.int64).reshape(-1, size)
        cost = changes.cost[sets].sum(axis=1)
        distinct = (np.diff(changes.operator[sets], axis=1) != 0).all(axis=1)
        sets, cost = sets[distinct & (cost < 0)], cost[distinct & (cost < 0)]
        within = np.ones(len(sets), dtype=np.bool_)
        for column, left in enumerate(_loosened(room)):
            within &= changes.load[sets, column].sum(axis=1) <= left
        kept += [(not w, c, tuple(s)) for w, c, s in zip(within.tolist(), cost.tolist(), sets.tolist(), strict=True)]
    kept.sort()
    beyond = 0
    for against, _, chosen in kept:
        beyond += against
        if unlikely is not None and beyond > unlikely:
            return
        yield np.array(chosen)


def _chains(changes: Changes, room: Floats) -> Iterator[Ints]:
    """One change, and those that make room for it at the least disturbance, one after another; by falling gain of the first."""
    scale = np.maximum(np.abs(changes.load).max(axis=0), 1e-30)
    load, room = changes.load / scale, _loosened(room) / scale
    pays = changes.cost > 0
    for first in np.argsort(changes.cost, kind="stable").tolist():
        if changes.cost[first] >= 0:
            return
        chain, lacking, gained = [first], load[first] - room, changes.cost[first]
        free = pays & (changes.operator != changes.operator[first])
        while (lacking > 0).any() and gained < 0 and len(chain) < LONGEST:
            relief = np.minimum(np.maximum(-load, 0.0), np.maximum(lacking, 0.0)).sum(axis=1)
            relief -= np.maximum(load + np.minimum(lacking, 0.0), 0.0).sum(axis=1)
            useful = free & (relief > 0)
            if not useful.any():
                break
            best = int(np.where(useful, changes.cost / np.where(useful, relief, 1.0), np.inf).argmin())
            chain.append(best)
            lacking, gained = lacking + load[best], gained + changes.cost[best]
            free &= changes.operator != changes.operator[best]
        if gained < 0 and not (lacking > 0).any():
            yield np.array(chain)
