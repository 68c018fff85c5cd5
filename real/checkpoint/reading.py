"""Reads what a rank has to read, verifies every checksum, and hands on what others want of it.

Shards are read block by block: a block is hashed, and copied to everybody who wants some of it, while it is in the core's cache.
What others want travels in rounds of bounded size that all ranks go through together. A rank that meets an error goes on with the
others to the end, so that nobody waits for it, and all of them raise what was found.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import xxhash

from real.checkpoint.errors import CheckpointError, damaged
from real.checkpoint.leaves import Piece
from real.checkpoint.memory import Scratch, bytes_of, is_plain, part_of
from real.checkpoint.metadata import Metadata
from real.checkpoint.ranks import Ranks
from real.checkpoint.rounds import Block, Message, Schedule
from real.checkpoint.storage import Storage
from simcore.checkpoint.boxes import Box, intersection
from simcore.checkpoint.loading import ReadPlan
from simcore.errors import Problem

Targets = Mapping[tuple[int, Box], Sequence[Piece]]
"""This rank's tensors by (position of the saved tensor, box)."""


class Loader:
    """One load of one rank."""

    def __init__(
        self,
        storage: Storage,
        name: str,
        metadata: Metadata,
        plan: ReadPlan,
        ranks: Ranks,
        targets: Targets,
        threads: int,
    ) -> None:
        self.storage, self.name, self.metadata, self.plan = storage, name, metadata, plan
        self.ranks, self.targets, self.threads = ranks, targets, threads
        self.problems: list[Problem] = []
        self._schedule = Schedule(plan, metadata, ranks.rank, storage.block_B)
        self._hashes: dict[int, xxhash.xxh3_64] = {}
        self._unreadable: set[int] = set()
        self._scratch = Scratch()
        self._sound = self._checked_files()

    def _checked_files(self) -> set[int]:
        """Files whose size is as the metadata has it; others are problems."""
        sound = set()
        for i in np.unique(self.metadata.file[self._schedule.shards]).tolist():
            file = self.metadata.files[i]
            try:
                size = self.storage.size(self.name, file.name)
            except CheckpointError as error:
                self.problems += error.problems
                continue
            if size == file.nbytes:
                sound.add(i)
            else:
                self.problems.append(
                    Problem(f"{self.name}/{file.name}", f"{size} bytes", f"{file.nbytes}, as it was written")
                )
        return sound

    def run(self) -> int:
        """Fill this rank's tensors; returns the bytes that it read. Problems are in `problems`."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="checkpoint") as pool:
            ahead = self._start(pool, 0)
            for number in range(self._schedule.rounds):
                messages, reads = ahead
                for read in reads:
                    read.result()
                ahead = self._start(pool, number + 1)
                if number < self._schedule.exchanged:
                    self._exchange(number, messages)
        return int(self.plan.saved.nbytes[self._schedule.shards].sum())

    def _start(self, pool: ThreadPoolExecutor, number: int) -> tuple[dict[int, torch.Tensor], list[Future[None]]]:
        """Begin with the reads of a round; returns messages, which they fill, by the rank that each is for."""
        messages = {
            peer: self._scratch.get(("send", peer, number % 2), by_round[number].nbytes)
            for peer, by_round in self._schedule.sends.items()
            if number in by_round
        }
        reads = self._schedule.reads.get(number, {})
        return messages, [pool.submit(self._read, blocks, messages) for blocks in reads.values()]

    def _read(self, blocks: Sequence[Block], messages: Mapping[int, torch.Tensor]) -> None:
        """Blocks of one shard that follow one another."""
        for block in blocks:
            if block.shard not in self._unreadable and not self._read_block(block, messages):
                self._unreadable.add(block.shard)

    def _read_block(self, block: Block, messages: Mapping[int, torch.Tensor]) -> bool:
        """Read, hash and hand out; returns whether it could be had and, after the shard's last one, is what was written."""
        file = int(self.metadata.file[block.shard])
        if file not in self._sound:
            return False
        views = self._own_views(block)
        found = next((v for common, v in views if common == block.box and is_plain(v)), None)
        if found is None:
            found = self._as_tensor(self._scratch.get("read", block.nbytes), block.shard, block.box)
        memory = bytes_of(found)
        try:
            offset_B = int(self.metadata.offset_B[block.shard]) + block.start_B
            self.storage.read_into(self.name, self.metadata.files[file].name, offset_B, memory)
        except CheckpointError as error:
            self.problems += [
                Problem(f"{self._where(block.shard)}: {p.field}", p.given, p.allowed, p.advice) for p in error.problems
            ]
            return False
        hashed = self._hashes.setdefault(block.shard, xxhash.xxh3_64())
        hashed.update(memory)
        for common, view in [*views, *self._message_views(block, messages)]:
            if view is not found:
                view.copy_(part_of(found, block.box, common))
        return not block.is_last or self._verified(block.shard, hashed.intdigest())

    def _verified(self, shard: int, found: int) -> bool:
        wanted = int(self.metadata.checksum[shard])
        if found != wanted:
            self.problems.append(damaged(self._where(shard), found, wanted))
        return found == wanted

    def _where(self, shard: int) -> str:
        return f"{self.name}/{self.metadata.files[self.metadata.file[shard]].name}, shard {self.metadata.words(shard)}"

    def _own_views(self, block: Block) -> list[tuple[Box, torch.Tensor]]:
        """What of the block this rank wants, and where."""
        found = []
        for wanted in self._schedule.own.get(block.shard, ()):
            common = intersection(self.plan.wanted.box(wanted), block.box)
            if common is not None:
                found += [(common, view) for view in self._views(wanted, common)]
        return found

    def _views(self, wanted: int, common: Box) -> list[torch.Tensor]:
        """This rank's memory of a part of a wanted shard; several where tensors share a name's data."""
        outer = self.plan.wanted.box(wanted)
        pieces = self.targets[int(self.plan.wanted.tensor[wanted]), outer]
        return [part_of(piece.data, outer, common) for piece in pieces]

    def _message_views(self, block: Block, messages: Mapping[int, torch.Tensor]) -> list[tuple[Box, torch.Tensor]]:
        """What of the block others want, and where it goes in their messages."""
        found = []
        for peer, memory in messages.items():
            message = self._schedule.sends[peer][block.round]
            for part in message.parts.get(block, ()):
                region = memory[part.start_B : part.start_B + part.nbytes]
                found.append((part.box, self._as_tensor(region, block.shard, part.box)))
        return found

    def _as_tensor(self, memory: torch.Tensor, shard: int, box: Box) -> torch.Tensor:
        """Bytes as a box of the saved shard's tensor."""
        spec = self.plan.saved.tensors[self.plan.saved.tensor[shard]]
        return memory.view(getattr(torch, spec.dtype)).view(box.lengths)

    def _exchange(self, number: int, messages: Mapping[int, torch.Tensor]) -> None:
        arriving = {
            peer: (by_round[number], self._scratch.get(("receive", peer), by_round[number].nbytes))
            for peer, by_round in self._schedule.receives.items()
            if number in by_round
        }
        self.ranks.exchange(messages, {peer: memory for peer, (_, memory) in arriving.items()})
        for message, memory in arriving.values():
            self._unpack(message, memory)

    def _unpack(self, message: Message, memory: torch.Tensor) -> None:
        for block, parts in message.parts.items():
            for part in parts:
                found = self._as_tensor(memory[part.start_B : part.start_B + part.nbytes], block.shard, part.box)
                for view in self._views(part.wanted, part.box):
                    view.copy_(found)
