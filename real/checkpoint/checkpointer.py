"""`save` and `load`: a state goes out in one parallelism and comes back in any other.

A state is a dict of roles (`model`, `optimizer`, ...) of trees of tensors and plain values. Tensors are global: a name stands for
one tensor whichever ranks hold it, whole (DDP), as a DTensor (FSDP2, tensor parallelism), a `Part` or a `FlatSlice` (ZeRO 1).
Values of these roles have to agree between ranks. Roles in `per_rank` (`dataloader`, `extra`) are kept for every rank by itself.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from real.checkpoint.agreeing import Agreed, agree, digest_of, gather_layouts, gather_problems
from real.checkpoint.collecting import no_collection
from real.checkpoint.errors import CheckpointError
from real.checkpoint.finishing import Clock, Finish, Saving
from real.checkpoint.leaves import Described, describe
from real.checkpoint.memory import ALIGN_B, ToWrite, WarmBuffer, direct, part_of
from real.checkpoint.opening import open_storage
from real.checkpoint.ranks import Ranks, own_group
from real.checkpoint.restoring import Loaded, Restore
from real.checkpoint.storage import SPARE, Storage
from real.checkpoint.writing import first_problem
from simcore.checkpoint.cache import PlanCache, plan_key
from simcore.checkpoint.saving import LARGEST_SHARD_B
from simcore.errors import InputError, Problem, WindtunnelError

PER_RANK = ("dataloader", "extra")
MOST_THREADS = 4
"""assumption: of a rank; a disk is busy with as many requests of 64 MiB. Fewer where ranks would share cores."""
Path = str | os.PathLike[str]


class Checkpointer:
    """Checkpoints of one job under one path. Every method is collective: all ranks call it in the same order."""

    def __init__(
        self,
        path: Path | Storage,
        *,
        ranks: Ranks | None = None,
        background: Ranks | None = None,
        group: dist.ProcessGroup | None = None,
        keep: int | None = None,
        per_rank: tuple[str, ...] = PER_RANK,
        largest_shard_B: int = LARGEST_SHARD_B,
        threads: int | None = None,
    ) -> None:
        """`path`: a folder or an address of fsspec. `keep`: how many committed checkpoints stay, None for all; in a folder the next
        save writes over the files of the last one that went, so there is one checkpoint more of them on the disk than is kept.

        `ranks` and `background` (of asynchronous saves) replace connections of torch.distributed over `group`.
        """
        if keep is not None and keep < 1:
            raise InputError("nothing would be kept", [Problem("keep", str(keep), "1 or more, or None for all")])
        self.storage = open_storage(path)
        self.ranks = ranks if ranks is not None else own_group(group)
        self.background = (
            background if background is not None else self.ranks if ranks is not None else own_group(group)
        )
        self.keep, self.per_rank, self.largest_shard_B = keep, per_rank, largest_shard_B
        self.threads = threads or max(1, min(MOST_THREADS, (os.cpu_count() or 1) // self.ranks.size))
        self._plans, self._buffer = PlanCache[Agreed](), WarmBuffer()
        self._last: Saving | None = None

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        parallelism: Mapping[str, int] | None = None,
        asynchronous: bool = False,
    ) -> Saving:
        """Save `state` as the checkpoint of `step`.

        Asynchronous: returns when the state is copied, so that training may change it; a save that is still going on is waited for
        first. Raises CheckpointError or InputError, on every rank, if it fails on any (asynchronous: in `Saving.wait`); nothing
        of it stays, and what was committed before is untouched.
        """
        if self._last is not None:
            self._last.join()
        saving = self._last = Saving(step)
        clock = Clock(saving.phases_s)
        with no_collection():
            described, agreed, place = self._prepare(state, saving, dict(parallelism or {}))
        saving.written_B = int(agreed.plan.written_B[self.ranks.rank])
        clock.lap("plan")
        views = _views(agreed, described)
        work, mistake = self._copied(views) if asynchronous else (direct(views), None)
        saving.copied_by = self._buffer.copied_by if asynchronous else "nothing"
        clock.lap("copy")
        finish = Finish(
            storage=self.storage,
            ranks=self.background if asynchronous else self.ranks,
            saving=saving,
            agreed=agreed,
            place=place,
            work=work,
            values=described.values,
            per_rank=self.per_rank,
            parallelism=dict(parallelism or {}),
            threads=self.threads,
            keep=self.keep,
            clock=clock,
            mistake=mistake,
        )
        if asynchronous:
            saving.start(finish.in_background)
        else:
            with no_collection():
                finish()
        return saving

    def _prepare(
        self, state: Mapping[str, Any], saving: Saving, parallelism: Mapping[str, int]
    ) -> tuple[Described, Agreed, str]:
        """Describe, agree on a plan and on a place; every rank raises if one cannot."""
        payload, mistake = b"", None
        try:
            if not 0 <= saving.step < 10**18:
                raise InputError("no such step", [Problem("step", str(saving.step), "0 to 10^18")])
            described = describe(state, self.ranks.rank, self.per_rank)
            payload = digest_of(described) + (self._place(saving.step).encode() if self.ranks.rank == 0 else b"")
        except WindtunnelError as error:
            mistake = error
        answers = gather_problems(self.ranks, mistake, payload)
        key = plan_key([a[:16] for a in answers], parallelism)
        agreed = self._plans.get(key)
        saving.planned_anew = agreed is None
        if agreed is None:
            agreed = agree(gather_layouts(self.ranks, described), self.ranks.rank, self.largest_shard_B, ALIGN_B)
            self._plans.put(key, agreed)
        return described, agreed, answers[0][16:].decode()

    def _place(self, step: int) -> str:
        """Where the checkpoint is written; what earlier saves that were killed have left is removed."""
        self.storage.clean(frozenset() if self.keep is None else frozenset((SPARE,)))
        return self.storage.reserve(step)

    def _copied(self, views: Sequence[tuple[int, torch.Tensor]]) -> tuple[list[ToWrite], WindtunnelError | None]:
        try:
            return self._buffer.copy(views), None
        except (RuntimeError, MemoryError) as error:
            problem = Problem("buffer", first_problem(error), "memory for a copy of what this rank writes")
            return [], CheckpointError("copying the state failed", [problem])

    def load(
        self,
        state: Mapping[str, Any],
        *,
        name: str | None = None,
        step: int | None = None,
        by_rank: Sequence[int] | None = None,
        read_groups: Sequence[int] | None = None,
    ) -> Loaded:
        """Fill the tensors of `state` from the checkpoint that was committed last, or from the one of `name` or `step`.

        Tensors may be cut in any way, over any number of ranks. `by_rank`: whose `dataloader` and `extra` this rank wants if
        `state` has these roles, by default its own (none where the checkpoint had fewer ranks). `read_groups`: for each rank the
        group in which a saved byte is read once and handed on; by default all ranks are one. Every checksum is verified. Raises
        CheckpointError, on every rank, naming what is missing or damaged; tensors are then in no particular state.
        """
        if self._last is not None:
            self._last.join()
        restore = Restore(
            storage=self.storage, ranks=self.ranks, state=state, per_rank=self.per_rank, threads=self.threads
        )
        with no_collection():
            return restore(name, step, by_rank, read_groups)


def _views(agreed: Agreed, described: Described) -> list[tuple[int, torch.Tensor]]:
    """(row of the plan, its elements in this rank's memory) of what this rank writes."""
    memory = {(p.spec.name, p.box): p.data for p in described.pieces}
    return [
        (row, part_of(memory[name, held], held, agreed.plan.shards.box(row)))
        for row, (name, held) in agreed.cut_from.items()
    ]


def save(path: Path | Storage, state: Mapping[str, Any], *, step: int, **options: Any) -> str:
    """Save once, synchronously: `Checkpointer(path, **options).save(state, step=step)`; returns the checkpoint's name."""
    return Checkpointer(path, **options).save(state, step=step).wait()


def load(
    path: Path | Storage, state: Mapping[str, Any], *, name: str | None = None, step: int | None = None, **options: Any
) -> Loaded:
    """Load once: `Checkpointer(path, **options).load(state, name=name, step=step)`."""
    return Checkpointer(path, **options).load(state, name=name, step=step)
