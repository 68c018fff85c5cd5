"""Reads what a rank has to read, verifies every checksum, and hands on what others want of it.

Reads are done in rounds of bounded size that all ranks go through together; a rank that meets an error goes on with the others to
the end, so that nobody waits for it, and all of them raise what was found.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from real.checkpoint.errors import CheckpointError, damaged
from real.checkpoint.leaves import Piece
from real.checkpoint.memory import bytes_of, is_plain, part_of
from real.checkpoint.metadata import Metadata
from real.checkpoint.ranks import Ranks
from real.checkpoint.storage import Storage
from simcore.checkpoint.boxes import Box, intersection
from simcore.checkpoint.loading import ReadPlan
from simcore.errors import Problem

ROUND_B = 256 * 2**20
"""Of reads of one rank in a round: bounds the memory that a load takes beside the state."""

Targets = Mapping[tuple[int, Box], Sequence[Piece]]
"""This rank's tensors by (position of the saved tensor, box)."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What a saved shard contributes to a wanted one; `peer` is who sends it or who gets it."""

    saved: int
    wanted: int
    peer: int


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
        self._round_of = self._rounds()
        self._sizes = self._checked_files()

    def _rounds(self) -> dict[tuple[int, int], int]:
        """(saved shard, read group) -> its round."""
        plan, nbytes = self.plan, self.plan.saved.nbytes
        order = np.lexsort((self.metadata.offset_B[plan.shard], self.metadata.file[plan.shard], plan.reader))
        done: dict[int, int] = {}
        found = {}
        for i in order.tolist():
            shard, reader = int(plan.shard[i]), int(plan.reader[i])
            found[shard, int(plan.groups[reader])] = done.get(reader, 0) // ROUND_B
            done[reader] = done.get(reader, 0) + int(nbytes[shard])
        return found

    def _checked_files(self) -> set[int]:
        """Files whose size is as the metadata has it; others are problems."""
        mine = self.plan.shard[self.plan.reader == self.ranks.rank]
        sound = set()
        for i in np.unique(self.metadata.file[mine]).tolist():
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
        plan, rank = self.plan, self.ranks.rank
        group = int(plan.groups[rank])
        reads: dict[int, list[int]] = {}
        for shard in plan.shard[plan.reader == rank].tolist():
            reads.setdefault(self._round_of[shard, group], []).append(shard)
        own, sends, receives = self._parts()
        rounds = max(self._round_of.values(), default=-1) + 1
        with ThreadPoolExecutor(self.threads, thread_name_prefix="checkpoint") as pool:
            ahead = self._start(pool, reads.get(0, []), own, sends)
            for number in range(rounds):
                current = ahead
                buffers = {shard: future.result() for shard, future in current.items()}
                if number + 1 < rounds:
                    ahead = self._start(pool, reads.get(number + 1, []), own, sends)
                self._keep(buffers, own)
                if self.ranks.size > 1:
                    self._exchange(buffers, sends.get(number, {}), receives.get(number, {}))
        return sum(int(plan.saved.nbytes[s]) for shards in reads.values() for s in shards)

    def _parts(
        self,
    ) -> tuple[dict[int, list[int]], dict[int, dict[int, list[_Part]]], dict[int, dict[int, list[_Part]]]]:
        """Saved shard -> wanted shards of this rank; round -> peer -> parts to send, and to receive."""
        plan, rank = self.plan, self.ranks.rank
        group = int(plan.groups[rank])
        mine = {int(s) for s in plan.shard[plan.reader == rank]}
        holds = np.zeros(len(plan.wanted.sets), dtype=np.bool_)
        holds[
            np.searchsorted(plan.wanted.sets.starts, np.flatnonzero(plan.wanted.sets.ranks == rank), side="right") - 1
        ] = True
        own: dict[int, list[int]] = {}
        for part in np.flatnonzero(holds[plan.wanted.holders[plan.part_wanted]]).tolist():
            if int(plan.part_saved[part]) in mine:
                own.setdefault(int(plan.part_saved[part]), []).append(int(plan.part_wanted[part]))
        sends: dict[int, dict[int, list[_Part]]] = {}
        receives: dict[int, dict[int, list[_Part]]] = {}
        parts, sources, targets = plan.exchanges
        for i in np.flatnonzero((sources == rank) | (targets == rank)).tolist():
            saved, wanted = int(plan.part_saved[parts[i]]), int(plan.part_wanted[parts[i]])
            outgoing = int(sources[i]) == rank
            peer = int(targets[i] if outgoing else sources[i])
            number = self._round_of[saved, group]
            (sends if outgoing else receives).setdefault(number, {}).setdefault(peer, []).append(
                _Part(saved, wanted, peer)
            )
        return own, sends, receives

    def _start(
        self,
        pool: ThreadPoolExecutor,
        shards: Sequence[int],
        own: Mapping[int, Sequence[int]],
        sends: Mapping[int, Mapping[int, Sequence[_Part]]],
    ) -> dict[int, Future[torch.Tensor | None]]:
        sent = {part.saved for by_peer in sends.values() for parts in by_peer.values() for part in parts}
        return {s: pool.submit(self._read, s, None if s in sent else self._in_place(s, own.get(s, ()))) for s in shards}

    def _in_place(self, shard: int, wanted: Sequence[int]) -> torch.Tensor | None:
        """The memory that the shard can be read into directly: one tensor wants all of it, row by row."""
        if len(wanted) != 1:
            return None
        outer, box = self.plan.wanted.box(wanted[0]), self.plan.saved.box(shard)
        pieces = self.targets[int(self.plan.wanted.tensor[wanted[0]]), outer]
        if len(pieces) != 1 or intersection(outer, box) != box:
            return None
        view = part_of(pieces[0].data, outer, box)
        return view if is_plain(view) else None

    def _read(self, shard: int, view: torch.Tensor | None) -> torch.Tensor | None:
        """Read and verify one shard, into `view` if there is one; returns its bytes, None if they cannot be had."""
        file = int(self.metadata.file[shard])
        if file not in self._sizes:
            return None
        where = f"{self.name}/{self.metadata.files[file].name}, shard {self.metadata.words(shard)}"
        if view is not None:
            target = view.reshape(-1).view(torch.uint8)
        else:
            target = torch.empty(int(self.plan.saved.nbytes[shard]), dtype=torch.uint8)
        memory = bytes_of(target)
        try:
            self.storage.read_into(
                self.name, self.metadata.files[file].name, int(self.metadata.offset_B[shard]), memory
            )
        except CheckpointError as error:
            self.problems += [Problem(f"{where}: {p.field}", p.given, p.allowed, p.advice) for p in error.problems]
            return None
        found, wanted = xxhash.xxh3_64_intdigest(memory), int(self.metadata.checksum[shard])
        if found != wanted:
            self.problems.append(damaged(where, found, wanted))
            return None
        return target

    def _keep(self, buffers: Mapping[int, torch.Tensor | None], own: Mapping[int, Sequence[int]]) -> None:
        """Copy what this rank read into its own tensors."""
        for shard, buffer in buffers.items():
            for wanted in own.get(shard, ()) if buffer is not None else ():
                common = self._common(shard, wanted)
                assert buffer is not None
                self._fill(wanted, common, self._cut(shard, buffer, common))

    def _fill(self, wanted: int, common: Box, found: torch.Tensor) -> None:
        outer = self.plan.wanted.box(wanted)
        for piece in self.targets[int(self.plan.wanted.tensor[wanted]), outer]:
            view = part_of(piece.data, outer, common)
            if view.data_ptr() != found.data_ptr():  # not read in place
                view.copy_(found)

    def _cut(self, shard: int, buffer: torch.Tensor, common: Box) -> torch.Tensor:
        """The part `common` of a saved shard whose bytes are in `buffer`."""
        box = self.plan.saved.box(shard)
        spec = self.plan.saved.tensors[self.plan.saved.tensor[shard]]
        return part_of(buffer.view(getattr(torch, spec.dtype)).view(box.lengths), box, common)

    def _exchange(
        self,
        buffers: Mapping[int, torch.Tensor | None],
        sends: Mapping[int, Sequence[_Part]],
        receives: Mapping[int, Sequence[_Part]],
    ) -> None:
        packed = {peer: self._packed(parts, buffers) for peer, parts in sends.items()}
        arriving = {peer: torch.empty(self._layout(parts)[1], dtype=torch.uint8) for peer, parts in receives.items()}
        self.ranks.exchange(packed, arriving)
        for peer, parts in receives.items():
            starts, _ = self._layout(parts)
            for part, start in zip(parts, starts, strict=True):
                common = self._common(part.saved, part.wanted)
                spec = self.plan.saved.tensors[self.plan.saved.tensor[part.saved]]
                found = arriving[peer][start : start + common.size * spec.item_B].view(getattr(torch, spec.dtype))
                self._fill(part.wanted, common, found.view(common.lengths))

    def _common(self, saved: int, wanted: int) -> Box:
        found = intersection(self.plan.wanted.box(wanted), self.plan.saved.box(saved))
        assert found is not None
        return found

    def _layout(self, parts: Sequence[_Part]) -> tuple[list[int], int]:
        """Where each part begins in a message, and the message's size; aligned for every dtype."""
        starts, total = [], 0
        for part in parts:
            starts.append(total)
            item_B = self.plan.saved.tensors[self.plan.saved.tensor[part.saved]].item_B
            total += -(-self._common(part.saved, part.wanted).size * item_B // 16) * 16
        return starts, total

    def _packed(self, parts: Sequence[_Part], buffers: Mapping[int, torch.Tensor | None]) -> torch.Tensor:
        starts, total = self._layout(parts)
        message = torch.empty(total, dtype=torch.uint8)
        for part, start in zip(parts, starts, strict=True):
            buffer = buffers[part.saved]
            if buffer is not None:
                found = self._cut(part.saved, buffer, self._common(part.saved, part.wanted))
                size = found.numel() * found.element_size()
                message[start : start + size].view(found.dtype).view(found.shape).copy_(found)
        return message
