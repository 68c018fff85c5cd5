"""The tree along which plans are gathered, results scattered and the end of a save agreed on.

First the ranks of a machine meet at its lowest rank; then machines meet in groups at the group's lowest rank, until one is left
(ByteCheckpoint, section 5.2). No rank has more than `per_machine` - 1 + `fan_out` - 1 children a level, where a flat gathering has
all ranks at the coordinator.
"""

from dataclasses import dataclass

import numpy as np

from simcore.checkpoint.shards import Ints
from simcore.errors import InputError, Problem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tree:
    """Rank r sends to `parent[r]` (the root to itself) in round `level[r]`, counted from 0; a round ends before the next."""

    parent: Ints  # (n_ranks,)
    level: Ints  # (n_ranks,) of the root: the number of rounds

    @property
    def rounds(self) -> int:
        """Rounds until the root has everything."""
        return int(self.level[0])

    def children(self, rank: int, level: int) -> Ints:
        """Ranks that send to `rank` in a round, ascending."""
        others = np.arange(len(self.parent)) != rank
        return np.flatnonzero((self.parent == rank) & (self.level == level) & others)

    def most_children(self) -> Ints:
        """(rounds,) the most that one rank receives in each round, which is what a round waits for."""
        found = []
        for level in range(self.rounds):
            found.append(int(np.bincount(self.parent[self.level == level]).max()))
        return np.array(found, dtype=np.int64)

    def below(self) -> Ints:
        """(n_ranks,) ranks whose data each has at the end, its own included."""
        total = np.ones(len(self.parent), dtype=np.int64)
        for level in range(self.rounds):
            senders = np.flatnonzero(self.level == level)
            np.add.at(total, self.parent[senders], total[senders])
        return total


def gather_tree(n_ranks: int, *, per_machine: int, fan_out: int = 16) -> Tree:
    """The tree over ranks that are numbered machine by machine; `fan_out` machines make a group. Raises InputError."""
    problems = [
        Problem(field, str(given), f"at least {least}")
        for field, given, least in (("n_ranks", n_ranks, 1), ("per_machine", per_machine, 1), ("fan_out", fan_out, 2))
        if given < least
    ]
    if problems:
        raise InputError("no tree can be made", problems)
    parent, level = np.arange(n_ranks, dtype=np.int64), np.zeros(n_ranks, dtype=np.int64)
    roots, size, rounds = np.arange(n_ranks, dtype=np.int64), per_machine, 0
    while len(roots) > 1:
        if size > 1:
            parent[roots] = roots[np.arange(len(roots)) // size * size]
            level[roots] = rounds
            rounds += 1
            roots = roots[::size]
        size = fan_out
    level[0] = rounds
    return Tree(parent=parent, level=level)


def flat_tree(n_ranks: int) -> Tree:
    """The baseline: every rank sends to rank 0."""
    return gather_tree(n_ranks, per_machine=n_ranks)
