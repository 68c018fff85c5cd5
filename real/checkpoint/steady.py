"""Runs that count: those during which this machine's memory was as fast as when costs were measured.

A virtual machine shares its memory channels and its last cache with others. On the one this was written on copies are 1.5 times as
fast for seconds at a time, with nothing else running in it; its cores and its disk are faster or slower for minutes. So before and
after every run memory is copied, and a small state, always the same, is saved and loaded where the run's checkpoints are. Which
runs count is decided by copies alone, never by what a run took.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from real.checkpoint.checkpointer import Checkpointer
from real.checkpoint.leaves import Part
from real.checkpoint.storage import Local
from real.checkpoint.warming import WARM_SAVES, forget

COPY_B = 64 * 2**20
"""Of each rank: beyond every cache, and a few milliseconds."""
TENSORS, TENSOR_B = 32, 2**20
"""Of the state that is saved and loaded beside runs, on each rank."""
SAMPLES = 3
CLOSE = 0.12
"""Share by which the speed of memory may differ; copies with nothing else in the way differ by half of that."""
MOST = 2
"""Times as many runs as are asked for, until there are enough that count."""

SHARED_MEMORY = Path("/dev/shm")
REFERENCE = ".windtunnel-speed"
"""Folder of its checkpoints."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes per second that all ranks together copy, and of a small state that they save (beyond copying it) and load, in memory or
    on a disk; None where they do not."""

    copy_B_per_s: float
    memory_save_B_per_s: float | None = None
    memory_load_B_per_s: float | None = None
    disk_save_B_per_s: float | None = None
    disk_load_B_per_s: float | None = None

    @classmethod
    def usual(cls, speeds: "Sequence[Speed]") -> "Speed":
        """Medians; of saves and loads, those that are known."""
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
    """Of all ranks of a job on one host, and of checkpoints in `folder`, where it makes its own; methods are collective."""

    def __init__(self, folder: Path) -> None:
        self._group = dist.new_group(backend="gloo")
        self._source = torch.ones(COPY_B // 4)
        self._target = torch.zeros(COPY_B // 4)
        self._medium = "memory" if in_memory(folder) else "disk"
        self._root = folder / REFERENCE
        self._checkpointer = Checkpointer(Local(self._root), threads=1, keep=1)
        self._state, self._step = {"model": dict(_tensors())}, 0
        for _ in range(WARM_SAVES):
            self._checkpoint_s()

    def speed(self) -> Speed:
        """The mean of `SAMPLES`, each as fast as its slowest rank, times the ranks: what disturbs some disturbs a run, too."""
        found = torch.tensor([(self._copied_s(), *self._checkpoint_s()) for _ in range(SAMPLES)], dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        sizes = torch.tensor([COPY_B, TENSORS * TENSOR_B, TENSORS * TENSOR_B])
        copied, saved, loaded = (dist.get_world_size() * sizes / found.mean(dim=0)).tolist()
        return Speed(copied, **{f"{self._medium}_save_B_per_s": saved, f"{self._medium}_load_B_per_s": loaded})

    def _copied_s(self) -> float:
        start = self._start()
        self._target.copy_(self._source)
        return time.perf_counter() - start

    def _checkpoint_s(self) -> tuple[float, float]:
        """Of an asynchronous save without copying, and of a load of what the system may have kept of it in memory."""
        self._step += 1
        start = self._start()
        saving = self._checkpointer.save(self._state, step=self._step, asynchronous=True)
        saving.wait()
        saved_s = time.perf_counter() - start - saving.phases_s["copy"]
        if dist.get_rank() == 0:
            forget(self._root)
        start = self._start()
        self._checkpointer.load(self._state)
        return saved_s, time.perf_counter() - start

    def _start(self) -> float:
        """When all ranks begin."""
        dist.barrier(group=self._group)
        return time.perf_counter()

    def runs(self, once: Callable[[], T], count: int, usual_B_per_s: float | None = None) -> list[Run[T]]:
        """`count` runs in their order: those with memory nearest to `usual_B_per_s` out of up to `MOST` times as many, fewer as
        soon as enough are close to it; without it the first ones. Decided alike on all ranks, by what they have measured together.

        What others have left to be written is on the disk before the first.
        """
        if dist.get_rank() == 0 and hasattr(os, "sync"):
            os.sync()
        found, before = list[Run[T]](), self.speed()
        usual = usual_B_per_s or inf
        most = count if usual_B_per_s is None else MOST * count
        while len(found) < most and sum(is_close(x, usual) for x in copies(found)) < count:
            result, after = once(), self.speed()
            found.append(Run(result, Speed.between(before, after)))
            before = after
        return [found[i] for i in nearest(copies(found), usual, count)] if usual_B_per_s else found


def _tensors() -> Iterator[tuple[str, Part]]:
    """Of which each rank has as many rows."""
    rows, columns = TENSOR_B // 4 // 1024, 1024
    shape, first = (rows * dist.get_world_size(), columns), (rows * dist.get_rank(), 0)
    return ((f"t{i}", Part(torch.ones(rows, columns), shape, first)) for i in range(TENSORS))


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
