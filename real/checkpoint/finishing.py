"""The second half of a save, in a thread where it is asynchronous: write, report, then commit or leave nothing behind."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from real.checkpoint.agreeing import Agreed, gather_problems
from real.checkpoint.errors import CheckpointError
from real.checkpoint.memory import ToWrite
from real.checkpoint.metadata import Metadata, encode
from real.checkpoint.ranks import Ranks
from real.checkpoint.retention import prune
from real.checkpoint.storage import Storage
from real.checkpoint.values import merge_plain
from real.checkpoint.writing import files_of, first_problem, write_shards
from simcore.errors import Problem, WindtunnelError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Saving:
    """A save that may still be going on. `phases_s` has the seconds of plan, copy, write and commit on this rank.

    `copied_by` says which path made the copy of an asynchronous save; a synchronous one writes from the state's own memory.
    """

    step: int
    phases_s: dict[str, float] = field(default_factory=dict)
    planned_anew: bool = True
    written_B: int = 0
    name: str | None = None
    copied_by: str = "nothing"
    _error: BaseException | None = None
    _thread: threading.Thread | None = None

    def start(self, run: Callable[[], None]) -> None:
        """Go on in a thread."""
        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Until it has ended, well or not."""
        if self._thread is not None:
            self._thread.join()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> str:
        """The name of the checkpoint once it is committed. Raises CheckpointError, on every rank, if that failed on any."""
        self.join()
        if self._error is not None:
            raise self._error
        assert self.name is not None
        return self.name


class Clock:
    """Seconds from lap to lap."""

    def __init__(self, laps_s: dict[str, float]) -> None:
        self._laps_s, self._last = laps_s, time.perf_counter()

    def lap(self, name: str) -> None:
        """What passed since the last lap goes under `name`."""
        now = time.perf_counter()
        self._laps_s[name], self._last = now - self._last, now


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What is left to do on this rank when its bytes are at hand."""

    storage: Storage
    ranks: Ranks
    saving: Saving
    agreed: Agreed
    place: str
    work: Sequence[ToWrite]
    values: Mapping[str, Any]
    per_rank: tuple[str, ...]
    parallelism: Mapping[str, int]
    threads: int
    keep: int | None
    clock: Clock
    mistake: WindtunnelError | None = None

    def __call__(self) -> None:
        """Write, then commit if every rank wrote. Raises CheckpointError, on every rank, with what went wrong on any."""
        try:
            mistake, checksums = self._written()
            self.clock.lap("write")
            report = json.dumps({"checksums": checksums, "values": self.values}).encode() if mistake is None else b""
            self.saving.name = self._agreed_name(gather_problems(self.ranks, mistake, report))
            self.clock.lap("commit")
        except BaseException:
            if self.ranks.rank == 0:
                self.storage.abandon(self.place)
            raise

    def in_background(self) -> None:
        """The same for a thread: an error is kept for `Saving.wait` and told to the log."""
        try:
            self()
        except BaseException as error:
            self.saving._error = error
            logger.warning("the checkpoint of step %d was not saved: %s", self.saving.step, error)

    def _written(self) -> tuple[WindtunnelError | None, list[tuple[int, int]]]:
        """This rank's mistake or its checksums; an error must not keep other ranks waiting, so it is returned."""
        if self.mistake is not None:
            return self.mistake, []
        try:
            self.storage.begin(self.place)
            found = write_shards(self.storage, self.place, self.agreed.plan, self.ranks.rank, self.work, self.threads)
            return None, sorted(found.items())
        except WindtunnelError as error:
            return error, []
        except Exception as error:
            return CheckpointError("writing failed", [Problem(self.place, first_problem(error), "success")]), []

    def _agreed_name(self, reports: Sequence[bytes]) -> str:
        name, mistake = "", None
        if self.ranks.rank == 0:
            try:
                metadata = encode(self._metadata([json.loads(r) for r in reports]))
                name = self.storage.commit(self.place, self.saving.step, metadata)
                self._prune(name)
            except WindtunnelError as error:
                mistake = error
        return gather_problems(self.ranks, mistake, name.encode())[0].decode()

    def _prune(self, name: str) -> None:
        """What is committed stays committed: old checkpoints that cannot be removed now are a warning."""
        try:
            if self.keep is not None:
                prune(self.storage, self.keep, reuse=True)
        except CheckpointError as error:
            logger.warning("%s is committed, but older checkpoints were not removed: %s", name, error)

    def _metadata(self, reports: Sequence[Mapping[str, Any]]) -> Metadata:
        plan = self.agreed.plan
        files, position = files_of(plan)
        checksum = np.zeros(len(plan.shards), dtype=np.uint64)
        for report in reports:
            for row, value in report["checksums"]:
                checksum[row] = value
        return Metadata(
            step=self.saving.step,
            n_ranks=self.ranks.size,
            tensors=plan.shards.tensors,
            files=tuple(files),
            aliases=self.agreed.aliases,
            parallelism=self.parallelism,
            values=merged_values([r["values"] for r in reports], self.per_rank),
            tensor=plan.shards.tensor,
            file=np.array(
                [position[w, r] for w, r in zip(plan.writer.tolist(), plan.role.tolist(), strict=True)], dtype=np.int64
            ),
            offset_B=plan.offset_B,
            checksum=checksum,
            offsets=plan.shards.offsets,
            lengths=plan.shards.lengths,
        )


def merged_values(values: Sequence[Mapping[str, Any]], per_rank: Sequence[str]) -> dict[str, Any]:
    """One tree for each role; of roles that ranks keep by themselves an object of rank to tree. Raises InputError."""
    merged: dict[str, Any] = {}
    for rank, trees in enumerate(values):
        for role, tree in trees.items():
            if role in per_rank:
                merged.setdefault(role, {})[str(rank)] = tree
            else:
                merged[role] = merge_plain(merged[role], tree, role) if role in merged else tree
    return merged
