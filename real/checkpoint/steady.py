"""Runs that count: those during which this machine's memory was as fast as when costs were measured.

A virtual machine shares its memory channels and its last cache with others. On the one this was written on copies are 1.5 times as
fast for seconds at a time, with nothing else running in it; saves are copies for the most part. So copies are timed before and
after every run, and where checkpoints are kept on a disk, which others use, too, so are writing to it and reading from it. Which
runs count is decided by copies alone, never by what a run took.
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
from real.checkpoint.storage import Local, read_all, write_all
from real.checkpoint.warming import drop

COPY_B = 64 * 2**20
"""Of each rank: beyond every cache, and a few milliseconds."""
DISK_B = 32 * 2**20
"""Of each rank, written again and again to blocks of the disk that its file already has, as saves do, and read from there."""
SAMPLES = 4
CLOSE = 0.12
"""Share by which the speed of memory may differ; copies with nothing else in the way differ by half of that."""
MOST = 2
"""Times as many runs as are asked for, until there are enough that count."""

SHARED_MEMORY = Path("/dev/shm")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes per second that all ranks together copy, and that they write to the disk and read from it; None where nothing is kept
    on one."""

    copy_B_per_s: float
    disk_write_B_per_s: float | None = None
    disk_read_B_per_s: float | None = None

    @classmethod
    def usual(cls, speeds: "Sequence[Speed]") -> "Speed":
        """Medians; of the disk, those that are known."""
        return cls._from(speeds, median)

    def known(self) -> dict[str, float]:
        """By name, without what is not known."""
        return {name: rate for name, rate in asdict(self).items() if rate is not None}

    @classmethod
    def between(cls, before: "Speed", after: "Speed") -> "Speed":
        """That of half as many bytes at each."""
        return cls._from((before, after), harmonic_mean)

    @classmethod
    def _from(cls, speeds: "Sequence[Speed]", middle: Callable[[Sequence[float]], float]) -> "Speed":
        """By name, of what is known."""
        rates: dict[str, list[float]] = {}
        for name, rate in (pair for speed in speeds for pair in speed.known().items()):
            rates.setdefault(name, []).append(rate)
        return cls(**{name: middle(found) for name, found in rates.items()})


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
            self._disk_s()

    def speed(self) -> Speed:
        """The mean of `SAMPLES`, each as fast as its slowest rank, times the ranks: what disturbs some disturbs a run, too."""
        took = [(self._copied_s(), *(self._disk_s() if self._disk else ())) for _ in range(SAMPLES)]
        found = torch.tensor(took, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        copied_s, *of_disk = found.mean(dim=0).tolist()
        ranks = dist.get_world_size()
        copied, disk = ranks * COPY_B / copied_s, [ranks * DISK_B / seconds for seconds in of_disk]
        return Speed(copied, *disk)

    def _copied_s(self) -> float:
        return self._together_s(lambda: self._target.copy_(self._source))

    def _disk_s(self) -> tuple[float, float]:
        """Until everything is on the disk, and until it is read from there, as far as the system can be told to forget it."""
        assert self._disk is not None
        handle, data = self._disk.fileno(), bytes_of(self._target)[:DISK_B]

        def write() -> None:
            write_all(handle, 0, data)
            os.fsync(handle)

        def read() -> None:
            for at_B in range(0, DISK_B, Local.block_B):
                read_all(handle, at_B, data[at_B : at_B + Local.block_B], "a file to time the disk with")

        written_s = self._together_s(write)
        drop(handle)
        return written_s, self._together_s(read)

    def _together_s(self, what: Callable[[], object]) -> float:
        """Seconds of this rank from where all ranks begin."""
        dist.barrier(group=self._group)
        start = time.perf_counter()
        what()
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
