"""Who writes which shard, so that every byte is written once and no rank writes much more than another."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simcore.checkpoint.balancing import worst_fit
from simcore.checkpoint.overlaps import check_complete, check_disjoint
from simcore.checkpoint.shards import Ints, Shards

LARGEST_SHARD_B = 64 * 2**20
"""What `save_plan` cuts shards to: small enough to balance over replicas and to read and verify in parallel, large for a disk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SavePlan:
    """Each shard's writer and its place in a file.

    A writer has one file for each role; `roles` names them. Shards lie in a file in the order of the table, `align_B` apart.
    """

    shards: Shards
    roles: tuple[str, ...]
    writer: Ints  # (n,) rank
    role: Ints  # (n,) position in `roles`
    offset_B: Ints  # (n,) where the shard begins in its file
    align_B: int

    @property
    def written_B(self) -> Ints:
        """(n_ranks,) bytes of shards that each rank writes."""
        return np.bincount(self.writer, weights=self.shards.nbytes, minlength=self.shards.n_ranks).astype(np.int64)

    @cached_property
    def file_B(self) -> Ints:
        """(n_ranks, roles) sizes of the files; 0 where there is none."""
        sizes = np.zeros((self.shards.n_ranks, len(self.roles)), dtype=np.int64)
        np.maximum.at(sizes, (self.writer, self.role), self.offset_B + self.shards.nbytes)
        return sizes


def save_plan(shards: Shards, *, largest_B: int | None = LARGEST_SHARD_B, align_B: int = 1) -> SavePlan:
    """Balanced and without duplicates: shards of more than `largest_B` are cut, then worst-fit over their replicas.

    Raises InputError where shards overlap without being replicas, or do not cover their tensors.
    """
    check_disjoint(shards)
    check_complete(shards)
    pieces = shards if largest_B is None else split(shards, largest_B)
    writer = worst_fit(pieces.nbytes, pieces.holders, pieces.sets, pieces.n_ranks)
    return with_writers(pieces, writer, align_B=align_B)


def lowest_rank_plan(shards: Shards, *, align_B: int = 1) -> SavePlan:
    """The baseline: the lowest rank that holds a shard writes it; the first data-parallel group writes all that is replicated."""
    return with_writers(shards, shards.sets.ranks[shards.sets.starts[:-1]][shards.holders], align_B=align_B)


def with_writers(shards: Shards, writer: Ints, *, align_B: int = 1) -> SavePlan:
    """The plan in which `writer[i]` writes shard i."""
    roles = tuple(dict.fromkeys(t.role for t in shards.tensors))
    role = np.array([roles.index(t.role) for t in shards.tensors], dtype=np.int64)[shards.tensor]
    offset_B = _running(writer * len(roles) + role, -(-shards.nbytes // align_B) * align_B)
    return SavePlan(shards=shards, roles=roles, writer=writer, role=role, offset_B=offset_B, align_B=align_B)


def _running(key: Ints, sizes: Ints) -> Ints:
    """Sum of the sizes before each item, among the items of its key."""
    order = np.argsort(key, kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    first = np.r_[True, key[order][1:] != key[order][:-1]] if len(key) else np.zeros(0, dtype=np.bool_)
    at_start = before[first]
    found = np.empty_like(before)
    found[order] = before - at_start[np.cumsum(first) - 1]
    return found


def split(shards: Shards, largest_B: int) -> Shards:
    """Shards of at most `largest_B` (or one element), cut along the outermost dimension that has more than one position."""
    item_B = np.array([t.item_B for t in shards.tensors], dtype=np.int64)
    while True:
        large = np.flatnonzero((shards.nbytes > largest_B) & (shards.sizes > 1))
        if not len(large):
            return shards
        dim = (shards.lengths[large] > 1).argmax(axis=1)
        length = shards.lengths[large, dim]
        row_B = shards.nbytes[large] // length
        each = np.maximum(largest_B // np.maximum(row_B, item_B[shards.tensor[large]]), 1)
        parts = -(-length // each)
        counts = np.ones(len(shards), dtype=np.int64)
        counts[large] = parts
        shards = _cut(shards, np.repeat(np.arange(len(shards)), counts), large, dim, -(-length // parts), parts)


def _cut(shards: Shards, rows: Ints, large: Ints, dim: Ints, each: Ints, parts: Ints) -> Shards:
    cut = shards.take(rows)
    is_large = np.zeros(len(shards), dtype=np.bool_)
    is_large[large] = True
    targets = np.flatnonzero(is_large[rows])
    which = np.repeat(np.arange(len(large)), parts)
    index = np.arange(len(which)) - np.repeat(np.cumsum(parts) - parts, parts)
    axis, length = dim[which], shards.lengths[large, dim][which]
    start = np.minimum(index * each[which], length)
    cut.offsets[targets, axis] += start
    cut.lengths[targets, axis] = np.minimum(each[which], length - start)
    return cut.take(np.flatnonzero((cut.lengths > 0).all(axis=1)))


def imbalance(loads_B: Ints | Sequence[int]) -> float:
    """Largest load over mean load; 1 is even."""
    loads = np.asarray(loads_B, dtype=np.float64)
    return float(loads.max() / loads.mean()) if loads.sum() else 1.0
