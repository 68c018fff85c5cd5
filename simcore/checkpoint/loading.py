"""Who reads which saved shard and hands what on to whom, when the state is wanted in any other parallelism.

A saved shard is read whole, because its checksum is of the whole, once in each *read group*: ranks that exchange what they read. By
default all ranks are one group; ByteCheckpoint's groups are the data-parallel ones (section 4.2).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simcore.checkpoint.balancing import worst_fit
from simcore.checkpoint.overlaps import overlaps
from simcore.checkpoint.shards import Ints, RankSets, Shards
from simcore.errors import InputError, Problem


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadPlan:
    """Reads (r of them) and parts (m of them): what a read shard contributes to a wanted shard.

    A part goes from the read's rank to every rank that holds the wanted shard in the same read group.
    """

    saved: Shards
    wanted: Shards
    groups: Ints  # (n_ranks,) read group of each rank
    shard: Ints  # (r,) row of `saved`
    reader: Ints  # (r,) rank
    part_saved: Ints  # (m,) row of `saved`
    part_wanted: Ints  # (m,) row of `wanted`
    part_B: Ints  # (m,)

    @property
    def read_B(self) -> Ints:
        """(n_ranks,) bytes that each rank reads."""
        each = self.saved.nbytes[self.shard]
        return np.bincount(self.reader, weights=each, minlength=self.wanted.n_ranks).astype(np.int64)

    @cached_property
    def exchanges(self) -> tuple[Ints, Ints, Ints]:
        """(part, source rank, target rank) of everything that ranks hand on to one another."""
        part, target = _expand(self.wanted.sets, self.wanted.holders[self.part_wanted])
        n_groups = int(self.groups.max()) + 1 if len(self.groups) else 1
        read_key = self.shard * n_groups + self.groups[self.reader]
        order = np.argsort(read_key, kind="stable")
        at = np.searchsorted(read_key[order], self.part_saved[part] * n_groups + self.groups[target])
        source = self.reader[order][at]
        moved = source != target
        return part[moved], source[moved], target[moved]

    @property
    def sent_B(self) -> Ints:
        """(n_ranks,) bytes that each rank hands on."""
        part, source, _ = self.exchanges
        return np.bincount(source, weights=self.part_B[part], minlength=self.wanted.n_ranks).astype(np.int64)

    @property
    def received_B(self) -> Ints:
        """(n_ranks,) bytes that each rank gets from others."""
        part, _, target = self.exchanges
        return np.bincount(target, weights=self.part_B[part], minlength=self.wanted.n_ranks).astype(np.int64)


def read_plan(saved: Shards, wanted: Shards, groups: Ints | None = None) -> ReadPlan:
    """Reads balanced over the ranks of each group that want something of the shard. `groups` (n_ranks,): None for one group.

    Both tables list the same tensors. Raises InputError naming the wanted tensors that the saved shards do not cover.
    """
    groups = np.zeros(wanted.n_ranks, dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
    i, j, elements = overlaps(wanted, saved)
    _check_covered(wanted, i, elements)
    item_B = np.array([t.item_B for t in saved.tensors], dtype=np.int64)
    shard, candidates, sets = _candidates(wanted, i, j, groups)
    return ReadPlan(
        saved=saved,
        wanted=wanted,
        groups=groups,
        shard=shard,
        reader=worst_fit(saved.nbytes[shard], candidates, sets, wanted.n_ranks),
        part_saved=j,
        part_wanted=i,
        part_B=elements * item_B[saved.tensor[j]],
    )


def everyone_reads(saved: Shards, wanted: Shards) -> ReadPlan:
    """The baseline without deduplication: every rank reads the shards that it wants something of, and hands on nothing."""
    return read_plan(saved, wanted, np.arange(wanted.n_ranks, dtype=np.int64))


def _check_covered(wanted: Shards, i: Ints, elements: Ints) -> None:
    has = np.bincount(i, weights=elements.astype(np.float64), minlength=len(wanted)).astype(np.int64)
    lacking = np.flatnonzero(has != wanted.sizes)
    if not len(lacking):
        return
    problems = []
    for tensor in np.unique(wanted.tensor[lacking])[:10].tolist():
        row = int(lacking[wanted.tensor[lacking] == tensor][0])
        box = wanted.box(row)
        given = f"{has[row]:,} of {wanted.sizes[row]:,} elements of {list(box.offsets)}+{list(box.lengths)}"
        problems.append(Problem(wanted.tensors[tensor].name, given, "all of them, once"))
    raise InputError("the saved shards do not hold what is wanted", problems)


def _candidates(wanted: Shards, i: Ints, j: Ints, groups: Ints) -> tuple[Ints, Ints, RankSets]:
    """For each (saved shard, read group) that is needed: the shard, and the ranks that want some of it as a set."""
    pair, rank = _expand(wanted.sets, wanted.holders[i])
    n_ranks = wanted.n_ranks
    n_groups = int(groups.max()) + 1 if n_ranks else 1
    key = np.sort((j[pair] * n_groups + groups[rank]) * n_ranks + rank)
    key = key[np.diff(key, prepend=-1) > 0]
    where, rank = key // n_ranks, key % n_ranks
    first = np.flatnonzero(np.r_[True, where[1:] != where[:-1]]) if len(key) else np.zeros(0, dtype=np.int64)
    sets = RankSets(starts=np.append(first, len(key)).astype(np.int64), ranks=rank)
    return where[first] // n_groups, np.arange(len(first)), sets


def _expand(sets: RankSets, which: Ints) -> tuple[Ints, Ints]:
    """(position in `which`, rank) for every member of every set that is named."""
    sizes = sets.sizes[which]
    position = np.repeat(np.arange(len(which)), sizes)
    before = np.cumsum(sizes) - sizes
    return position, sets.ranks[np.arange(len(position)) - np.repeat(before - sets.starts[:-1][which], sizes)]
