"""How fast memory and the disk are beside a run of checkpoints, as against when costs were measured.

A virtual machine shares its memory channels and its last cache with others: its copies are 1.5 times as fast for seconds at a
time, with nothing else running in it, and its disk is faster or slower for minutes. So before and after every run memory is copied,
and where checkpoints are in memory a small state, always the same, is saved and loaded there. Where they are on a disk, a file of
it is written and read: a small checkpoint was saved there after large ones in 1.8 times as long as usual, which did not slow those.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import harmonic_mean, median
from tempfile import mkstemp
from typing import Protocol

import torch
import torch.distributed as dist

from real.checkpoint.checkpointer import Checkpointer
from real.checkpoint.collecting import no_collection
from real.checkpoint.leaves import Part
from real.checkpoint.memory import bytes_of
from real.checkpoint.storage import Local, read_all, write_all
from real.checkpoint.warming import WARM_SAVES, drop

COPY_B = 128 * 2**20
"""Of each rank: beyond every cache, and ten milliseconds."""
TENSORS, TENSOR_B = 128, 2**20
"""Of the state that is saved and loaded beside runs, on each rank. After a calibration in a slow spell, states of 1.4 GB were
a tenth faster, as a rule, than one of a quarter of this size had said."""
FILE_B = 64 * 2**20
"""Of each rank, written again and again to blocks of the disk that its file already has, as saves do, and read from there."""
SAMPLES = 2

SHARED_MEMORY = Path("/dev/shm")
REFERENCE = ".windtunnel-speed"
"""Folder of its checkpoints."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes per second that all ranks together copy, of a small state that they save (beyond copying it) and load in memory, and of
    a file on the disk that they write and read; None where checkpoints are elsewhere."""

    copy_B_per_s: float
    memory_save_B_per_s: float | None = None
    memory_load_B_per_s: float | None = None
    disk_write_B_per_s: float | None = None
    disk_read_B_per_s: float | None = None

    @classmethod
    def usual(cls, speeds: "Sequence[Speed]") -> "Speed":
        """Medians of those that are known."""
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


class _Probe(Protocol):
    """What is timed beside copies."""

    names: tuple[str, str]
    """Of `Speed`."""
    nbytes: int
    """Of each rank."""

    def seconds(self, start: Callable[[], float]) -> tuple[float, float]:
        """Of putting so much there and getting it back; `start` says when all ranks begin."""


class _Checkpoint:
    """A small state in memory."""

    names = "memory_save_B_per_s", "memory_load_B_per_s"
    nbytes = TENSORS * TENSOR_B

    def __init__(self, folder: Path) -> None:
        self._checkpointer = Checkpointer(Local(folder / REFERENCE), threads=1, keep=1)
        self._state, self._step = {"model": dict(_tensors())}, 0

    def seconds(self, start: Callable[[], float]) -> tuple[float, float]:
        """Of an asynchronous save without copying, and of a load."""
        self._step += 1
        begun = start()
        saving = self._checkpointer.save(self._state, step=self._step, asynchronous=True)
        saving.wait()
        saved_s = time.perf_counter() - begun - saving.phases_s["copy"]
        begun = start()
        self._checkpointer.load(self._state)
        return saved_s, time.perf_counter() - begun


class _File:
    """A file on a disk, which has no name."""

    names = "disk_write_B_per_s", "disk_read_B_per_s"
    nbytes = FILE_B

    def __init__(self, folder: Path) -> None:
        handle, name = mkstemp(dir=folder, prefix=".windtunnel-speed-")
        Path(name).unlink()
        self._file = os.fdopen(handle, "r+b", buffering=0)
        self._data = bytes_of(torch.zeros(FILE_B // 4))

    def seconds(self, start: Callable[[], float]) -> tuple[float, float]:
        """Until everything is on the disk, and until it is read from there, as far as the system can be told to forget it."""
        handle = self._file.fileno()
        begun = start()
        write_all(handle, 0, self._data)
        os.fsync(handle)
        written_s = time.perf_counter() - begun
        drop(handle)
        begun = start()
        for at_B in range(0, FILE_B, Local.block_B):
            read_all(handle, at_B, self._data[at_B : at_B + Local.block_B], "a file to time the disk with")
        return written_s, time.perf_counter() - begun


class Speedometer:
    """Of all ranks of a job on one host, where `folder` is, in which it keeps what it times. All ranks make one and ask at once."""

    def __init__(self, folder: Path) -> None:
        self._group = dist.new_group(backend="gloo")
        self._source = torch.ones(COPY_B // 4)
        self._target = torch.zeros(COPY_B // 4)
        self._probe: _Probe = _Checkpoint(folder) if in_memory(folder) else _File(folder)
        for _ in range(WARM_SAVES):
            self._probe.seconds(self._start)

    def speed(self) -> Speed:
        """The mean of `SAMPLES`, each as fast as its slowest rank, times the ranks: what disturbs some disturbs a run, too. But not
        Python's collector, which a plan of some size made fall into each probe, where a run had none."""
        with no_collection():
            took = [(self._copied_s(), *self._probe.seconds(self._start)) for _ in range(SAMPLES)]
        found = torch.tensor(took, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        sizes = torch.tensor([COPY_B, self._probe.nbytes, self._probe.nbytes])
        copied, *of_probe = (dist.get_world_size() * sizes / found.mean(dim=0)).tolist()
        return Speed(copied, **dict(zip(self._probe.names, of_probe, strict=True)))

    def _copied_s(self) -> float:
        start = self._start()
        self._target.copy_(self._source)
        return time.perf_counter() - start

    def _start(self) -> float:
        """When all ranks begin."""
        dist.barrier(group=self._group)
        return time.perf_counter()


def _tensors() -> Iterator[tuple[str, Part]]:
    """Of which each rank has as many rows."""
    rows, columns = TENSOR_B // 4 // 1024, 1024
    shape, first = (rows * dist.get_world_size(), columns), (rows * dist.get_rank(), 0)
    return ((f"t{i}", Part(torch.ones(rows, columns), shape, first)) for i in range(TENSORS))


def in_memory(folder: Path) -> bool:
    """Whether a folder is in Linux' file system of shared memory."""
    return folder.resolve().is_relative_to(SHARED_MEMORY)
