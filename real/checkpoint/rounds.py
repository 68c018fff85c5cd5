"""What a load reads when, and what goes to whom: worked out alike on every rank, so only bytes are exchanged.

A reader deals its shards out to lanes, which it may read side by side, and cuts them into blocks of whole rows. In each round it
reads some bytes of every lane; a message holds what one rank wants of another's blocks of one round.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from real.checkpoint.metadata import Metadata
from simcore.checkpoint.boxes import Box, intersection
from simcore.checkpoint.loading import ReadPlan
from simcore.checkpoint.shards import Ints

LANES = 4
"""Shards that one rank reads side by side where it exchanges; as many as the most threads of a rank."""
ROUND_BLOCKS = 4
"""Of each lane in a round: bounds the memory that a load takes beside the state, and keeps messages in the shared cache."""
MESSAGE_ALIGN_B = 16
"""Of parts in a message: a multiple of every item."""


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes [start_B, start_B + nbytes) of a saved shard, which are `box` of its tensor."""

    shard: int
    box: Box
    start_B: int
    nbytes: int
    round: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Part:
    """What a block contributes to a wanted shard, and where it is in a message."""

    wanted: int
    box: Box
    start_B: int
    nbytes: int


@dataclass(slots=True)
class Message:
    """From one rank to another in one round: parts of each block in the order in which they lie."""

    parts: dict[Block, list[Part]] = field(default_factory=dict)
    nbytes: int = 0

    def add(self, block: Block, wanted: int, box: Box, nbytes: int) -> None:
        """One more part, behind those that are there."""
        self.parts.setdefault(block, []).append(Part(wanted, box, self.nbytes, nbytes))
        self.nbytes += -(-nbytes // MESSAGE_ALIGN_B) * MESSAGE_ALIGN_B


class Schedule:
    """Of one rank: `reads` by round and shard; messages it `sends` and `receives` by peer and round; what it keeps for itself.

    In the first `exchanged` rounds some rank sends something. What is read after them is one round, since nobody waits for anybody.
    """

    def __init__(self, plan: ReadPlan, metadata: Metadata, rank: int, block_B: int) -> None:
        self._plan, self._rank, self._block_B = plan, rank, block_B
        self._round_B = ROUND_BLOCKS * block_B
        self._cuts: dict[int, list[Block]] = {}
        self._lane_B = self._lane_offsets(metadata)
        ends_B = self._lane_B + plan.saved.nbytes[plan.shard]
        self.exchanged = -(-int(ends_B[self._handed_on(*plan.exchanges[:2])].max(initial=0)) // self._round_B)
        self.rounds = self.exchanged + int(ends_B.max(initial=0) > self.exchanged * self._round_B)
        mine = np.flatnonzero(plan.reader == rank)
        self.shards: Ints = plan.shard[mine]
        self.reads: dict[int, dict[int, list[Block]]] = {}
        for block in (block for read in mine.tolist() for block in self._blocks(read)):
            self.reads.setdefault(block.round, {}).setdefault(block.shard, []).append(block)
        self.own = self._kept()
        self.sends: dict[int, dict[int, Message]] = {}
        self.receives: dict[int, dict[int, Message]] = {}
        self._lay_out()

    def _lane_offsets(self, metadata: Metadata) -> Ints:
        """(r,) where each read begins among those of its lane; a reader goes through its files from front to back."""
        plan = self._plan
        order = np.lexsort((metadata.offset_B[plan.shard], metadata.file[plan.shard], plan.reader))
        reader = plan.reader[order]
        place = np.arange(len(order)) - np.searchsorted(reader, reader)  # among the reads of its reader
        lane = reader * LANES + place % LANES
        by_lane = np.argsort(lane, kind="stable")
        nbytes = plan.saved.nbytes[plan.shard][order][by_lane]
        before = np.cumsum(nbytes) - nbytes
        first = np.searchsorted(lane[by_lane], lane[by_lane])
        found = np.empty(len(order), dtype=np.int64)
        found[order[by_lane]] = before - before[first]
        return found

    def _blocks(self, read: int) -> list[Block]:
        """Rows of what a read of the plan reads, along the first dimension that has more than one position."""
        if read not in self._cuts:
            self._cuts[read] = list(self._cut(int(self._plan.shard[read]), int(self._lane_B[read])))
        return self._cuts[read]

    def _cut(self, shard: int, lane_B: int) -> Iterator[Block]:
        box, nbytes = self._plan.saved.box(shard), int(self._plan.saved.nbytes[shard])
        dim = next((d for d, n in enumerate(box.lengths) if n > 1), None)
        rows = 1 if dim is None else box.lengths[dim]
        row_B = nbytes // rows
        each = max(self._block_B // row_B, 1)
        for first in range(0, rows, each):
            count, start_B = min(each, rows - first), first * row_B
            number = min((lane_B + start_B) // self._round_B, self.exchanged)
            yield Block(shard, _rows(box, dim, first, count), start_B, count * row_B, number, first + count == rows)

    def _kept(self) -> dict[int, list[int]]:
        """Saved shards that this rank reads -> shards that it wants some of them for."""
        plan, mine = self._plan, set(self.shards.tolist())
        sets = plan.wanted.sets
        holds = np.zeros(len(sets), dtype=np.bool_)
        holds[np.searchsorted(sets.starts, np.flatnonzero(sets.ranks == self._rank), side="right") - 1] = True
        found: dict[int, list[int]] = {}
        for part in np.flatnonzero(holds[plan.wanted.holders[plan.part_wanted]]).tolist():
            if int(plan.part_saved[part]) in mine:
                found.setdefault(int(plan.part_saved[part]), []).append(int(plan.part_wanted[part]))
        return found

    def _lay_out(self) -> None:
        """Messages from and to this rank; both sides go through the plan's exchanges in its order."""
        plan = self._plan
        part, source, target = plan.exchanges
        involved = np.flatnonzero((source == self._rank) | (target == self._rank))
        part, source, target = part[involved], source[involved], target[involved]
        reads, wanted = self._handed_on(part, source), plan.part_wanted[part]
        for row in zip(reads.tolist(), wanted.tolist(), source.tolist(), target.tolist(), strict=True):
            self._lay(*row)

    def _handed_on(self, part: Ints, source: Ints) -> Ints:
        """Positions of the reads that parts come from, which `source` hands on."""
        plan = self._plan
        n_ranks = plan.wanted.n_ranks  # a rank reads a shard once
        read_key = plan.shard * n_ranks + plan.reader
        order = np.argsort(read_key, kind="stable")
        found: Ints = order[np.searchsorted(read_key[order], plan.part_saved[part] * n_ranks + source)]
        return found

    def _lay(self, read: int, wanted: int, source: int, target: int) -> None:
        by_round = self.sends.setdefault(target, {}) if source == self._rank else self.receives.setdefault(source, {})
        outer = self._plan.wanted.box(wanted)
        for block in self._blocks(read):
            common = intersection(outer, block.box)
            if common is not None:
                nbytes = common.size * (block.nbytes // block.box.size)
                by_round.setdefault(block.round, Message()).add(block, wanted, common, nbytes)


def _rows(box: Box, dim: int | None, first: int, count: int) -> Box:
    """Positions [first, first + count) of a box along a dimension."""
    if dim is None:
        return box
    offsets, lengths = list(box.offsets), list(box.lengths)
    offsets[dim], lengths[dim] = offsets[dim] + first, count
    return Box(tuple(offsets), tuple(lengths))
