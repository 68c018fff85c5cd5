"""Pairs of shards that have elements in common, among hundreds of thousands."""

from collections.abc import Iterator, Sequence

import numpy as np

from simcore.checkpoint.shards import Ints, Shards, TensorSpec
from simcore.errors import InputError, Problem

PAIRS_AT_A_TIME = 1 << 21
SHARDS_AT_A_TIME = 1 << 20
"""So that memory stays within 200 MB whatever the shards are."""


def overlaps(left: Shards, right: Shards) -> tuple[Ints, Ints, Ints]:
    """Rows i of `left` and j of `right` with elements in common, and how many elements that is. Both list the same tensors.

    Along one axis of each tensor, `right` sorted by where its shards start, candidates of a row of `left` are neighbours; what
    remains is compared directly. Linear in the pairs where shards are cut along few axes.
    """
    found = list(_pairs(left, right))
    i, j, size = (np.concatenate([f[k] for f in found]) if found else np.zeros(0, dtype=np.int64) for k in range(3))
    return i, j, size


def check_disjoint(shards: Shards) -> None:
    """Raise InputError that names the first two shards of one tensor that overlap."""
    for i, j, _ in _pairs(shards, shards):
        twice = np.flatnonzero(i != j)
        if len(twice):
            a, b = int(i[twice[0]]), int(j[twice[0]])
            spec = shards.tensors[shards.tensor[a]]
            given = f"{_words(shards, a)} and {_words(shards, b)}"
            raise InputError("shards overlap", [Problem(spec.name, given, "every element in one shard")])


def check_complete(shards: Shards, tensors: Sequence[TensorSpec] | None = None) -> None:
    """Raise InputError naming the tensors (of `tensors`, else all) that disjoint `shards` do not cover."""
    has = np.bincount(shards.tensor, weights=shards.sizes.astype(np.float64), minlength=len(shards.tensors))
    wanted = None if tensors is None else {t.name for t in tensors}
    problems = []
    for spec, elements in zip(shards.tensors, has.tolist(), strict=True):
        lacking = spec.nbytes // spec.item_B - int(elements)
        if lacking and (wanted is None or spec.name in wanted):
            problems.append(Problem(spec.name, f"{int(elements):,} elements", f"all of shape {spec.shape}"))
    if problems:
        raise InputError(f"{len(problems)} tensors are not covered by their shards", problems[:10])


def _pairs(left: Shards, right: Shards) -> Iterator[tuple[Ints, Ints, Ints]]:
    """(rows of `left`, rows of `right`, common elements), some tensors at a time."""
    if not len(left) or not len(right):
        return
    counts = np.bincount(left.tensor, minlength=len(left.tensors))
    counts = np.maximum(counts, np.bincount(right.tensor, minlength=len(left.tensors)))
    if counts.sum() <= SHARDS_AT_A_TIME:
        yield from _pairs_of(left, right)
        return
    for first, last in _chunks(counts, SHARDS_AT_A_TIME):
        rows, others = (np.flatnonzero((s.tensor >= first) & (s.tensor < last)) for s in (left, right))
        if len(rows) and len(others):
            taken = left.take(rows)
            for i, j, common in _pairs_of(taken, taken if left is right else right.take(others)):
                yield rows[i], others[j], common


def _pairs_of(left: Shards, right: Shards) -> Iterator[tuple[Ints, Ints, Ints]]:
    axis = _axes(right)
    rows = np.arange(len(right)), axis[right.tensor]
    starts = right.offsets[rows]
    stops = starts + right.lengths[rows]
    span = int(stops.max()) + 2
    order = np.lexsort((starts, right.tensor))
    base = right.tensor[order] * span
    start_keys = base + starts[order]
    stop_keys = np.maximum.accumulate(base + stops[order])
    own = np.arange(len(left)), axis[left.tensor]
    begin = left.tensor * span + np.minimum(left.offsets[own], span - 1)
    end = left.tensor * span + np.minimum(left.offsets[own] + left.lengths[own], span - 1)
    low = np.searchsorted(stop_keys, begin, side="right")
    high = np.maximum(np.searchsorted(start_keys, end, side="left"), low)
    for first, last in _chunks(high - low, PAIRS_AT_A_TIME):
        i, j = _expand(low[first:last], high[first:last])
        i, j = i + first, order[j]
        common = np.minimum(left.offsets[i] + left.lengths[i], right.offsets[j] + right.lengths[j])
        common -= np.maximum(left.offsets[i], right.offsets[j])
        meets = (common > 0).all(axis=1) & (left.tensor[i] == right.tensor[j])
        yield i[meets], j[meets], common[meets].prod(axis=1)


def _axes(shards: Shards) -> Ints:
    """(tensors,) the axis along which each tensor's shards are shortest beside their tensor."""
    extent = np.ones((len(shards.tensors), shards.offsets.shape[1]))
    for row, spec in zip(extent, shards.tensors, strict=True):
        row[: len(spec.shape)] = np.maximum(spec.shape, 1)
    share = np.zeros_like(extent)
    for d in range(extent.shape[1]):
        share[:, d] = np.bincount(shards.tensor, shards.lengths[:, d], minlength=len(extent)) / extent[:, d]
    return np.asarray(share.argmin(axis=1), dtype=np.int64)


def _chunks(counts: Ints, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that count at most `most` together, or are one row."""
    total = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = total[first - 1] if first else 0
        last = max(int(np.searchsorted(total, done + most, side="right")), first + 1)
        yield first, last
        first = last


def _expand(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Every number in [low[i], high[i]) with its i."""
    counts = high - low
    i = np.repeat(np.arange(len(low)), counts)
    before = np.cumsum(counts) - counts
    return i, np.arange(len(i)) - np.repeat(before - low, counts)


def _words(shards: Shards, row: int) -> str:
    box = shards.box(row)
    return f"{list(box.offsets)}+{list(box.lengths)}"
