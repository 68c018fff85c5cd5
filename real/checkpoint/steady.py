"""Runs that count: those during which this machine's memory was as fast as when costs were measured.

A virtual machine shares its memory channels and its last cache with others. On the one this was written on copies are 1.5 times as
fast for seconds at a time, with nothing else running in it; saves are copies for the most part. So copies are timed before and
after every run, and where checkpoints are kept on a disk, which others use, too, so is writing to it. Which runs count is decided
by copies alone, never by what a run took.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import harmonic_mean, median
from tempfile import mkstemp
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from real.checkpoint.memory import bytes_of
from real.checkpoint.storage import write_all

COPY_B = 64 * 2**20
"""Of each rank: beyond every cache, and a few milliseconds."""
DISK_B = 32 * 2**20
"""Of each rank, written again and again to blocks of the disk that its file already has, as saves do."""
SAMPLES = 4
CLOSE = 0.12
"""Share by which the speed of memory may differ; copies with nothing else in the way differ by half of that."""
MOST = 2
"""Times as many runs as are asked for, until there are enough that count."""

SHARED_MEMORY = Path("/dev/shm")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Bytes per second that all ranks together copy, and that they write to the disk; None where nothing is kept on one."""

    copy_B_per_s: float
    disk_B_per_s: float | None = None

    @classmethod
    def usual(cls, speeds: "Sequence[Speed]") -> "Speed":
        """Medians; of the disk, those that are known."""
        written = [s.disk_B_per_s for s in speeds if s.disk_B_per_s is not None]
        return cls(
            copy_B_per_s=median(s.copy_B_per_s for s in speeds),
            disk_B_per_s=median(written) if written else None,
        )

    def known(self) -> dict[str, float]:
        """By name, without what is not known."""
        return {name: rate for name, rate in asdict(self).items() if rate is not None}

    @classmethod
    def between(cls, before: "Speed", after: "Speed") -> "Speed":
        """That of half as many bytes at each."""
        a, b = before.disk_B_per_s, after.disk_B_per_s
        return cls(
            copy_B_per_s=harmonic_mean((before.copy_B_per_s, after.copy_B_per_s)),
            disk_B_per_s=None if a is None or b is None else harmonic_mean((a, b)),
        )


@dataclass(frozen=True, slots=True)
class Run(Generic[T]):
    """What a run gave, and how fast memory was around it."""

    result: T
    speed: Speed


class Memory:
    """Of all ranks of a job on one host, and the disk on which `folder` is, if it is on one; methods are collective."""

    def __init__(self, folder: Path | None = None) -> None:
        self._group = dist.new_group(backend="gloo")
        self._source = torch.ones(COPY_B // 4)
        self._target = torch.zeros(COPY_B // 4)
        self._disk = None
        if folder is not None and not in_memory(folder):
            handle, name = mkstemp(dir=folder, prefix=".windtunnel-speed-")
            Path(name).unlink()
            self._disk = os.fdopen(handle, "r+b", buffering=0)
            self._written_s()

    def speed(self) -> Speed:
        """The mean of `SAMPLES`, each as fast as its slowest rank, times the ranks: what disturbs some disturbs a run, too."""
        took = [(self._copied_s(), self._written_s() if self._disk else 0.0) for _ in range(SAMPLES)]
        found = torch.tensor(took, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        copied_s, written_s = found.mean(dim=0).tolist()
        ranks = dist.get_world_size()
        return Speed(
            copy_B_per_s=COPY_B * ranks / copied_s,
            disk_B_per_s=DISK_B * ranks / written_s if self._disk else None,
        )

    def _copied_s(self) -> float:
        dist.barrier(group=self._group)
        start = time.perf_counter()
        self._target.copy_(self._source)
        return time.perf_counter() - start

    def _written_s(self) -> float:
        """Until it is on the disk."""
        assert self._disk is not None
        dist.barrier(group=self._group)
        start = time.perf_counter()
        self._disk.seek(0)
        write_all(self._disk.fileno(), 0, bytes_of(self._source)[:DISK_B])
        os.fsync(self._disk.fileno())
        return time.perf_counter() - start

    def runs(self, once: Callable[[], T], count: int, usual_B_per_s: float | None = None) -> list[Run[T]]:
        """`count` runs in their order: those with memory nearest to `usual_B_per_s` out of up to `MOST` times as many, fewer as
        soon as enough are close to it; without it the first ones. Decided alike on all ranks, by what they have measured together.

        What others have left to be written is on the disk before the first.
        """
        if dist.get_rank() == 0 and hasattr(os, "sync"):
            os.sync()
        if usual_B_per_s is None:
            return [self._run(once) for _ in range(count)]
        found = list[Run[T]]()
        while len(found) < MOST * count and sum(is_close(x, usual_B_per_s) for x in copies(found)) < count:
            found.append(self._run(once))
        return [found[i] for i in nearest(copies(found), usual_B_per_s, count)]

    def _run(self, once: Callable[[], T]) -> Run[T]:
        before, result = self.speed(), once()
        return Run(result, Speed.between(before, self.speed()))


def in_memory(folder: Path) -> bool:
    """Whether a folder is in Linux' file system of shared memory."""
    return folder.resolve().is_relative_to(SHARED_MEMORY)


def copies(runs: Sequence[Run[T]]) -> list[float]:
    """Bytes per second, by run."""
    return [run.speed.copy_B_per_s for run in runs]


def is_close(copy_B_per_s: float, usual_B_per_s: float) -> bool:
    """Whether what was measured at this speed of memory counts."""
    return abs(copy_B_per_s / usual_B_per_s - 1.0) <= CLOSE


def nearest(copy_B_per_s: Sequence[float], usual_B_per_s: float, count: int) -> list[int]:
    """Positions, in ascending order, of the `count` speeds that are nearest to the usual one; the first of equally near ones."""
    off = np.abs(np.asarray(copy_B_per_s) / usual_B_per_s - 1.0)
    return sorted(np.argsort(np.maximum(off, CLOSE), kind="stable")[:count].tolist())
