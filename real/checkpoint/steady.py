"""Runs that count: those during which this machine's memory was as fast as when costs were measured.

A virtual machine shares its memory channels with others. On the one this was written on copies are 1.5 times as fast for seconds
at a time, with nothing else running in it and caches as fast as ever; saves and loads are copies for the most part. So a copy is
timed before and after every run. Which runs count is decided by these copies alone, never by what a run took.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist

COPY_B = 64 * 2**20
"""Of each rank: beyond every cache, and a few milliseconds."""
CLOSE = 0.12
"""Share by which the speed of memory may differ; copies with nothing else in the way differ by half of that."""
MOST = 2
"""Times as many runs as are asked for, until there are enough that count."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run(Generic[T]):
    """What a run gave, and bytes per second that all ranks together copied around it: the mean of before and after."""

    result: T
    copy_B_per_s: float


class Memory:
    """Of all ranks of a job on one host; methods are collective."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._source = torch.ones(COPY_B // 4)
        self._target = torch.zeros(COPY_B // 4)

    def copy_B_per_s(self) -> float:
        """The better of two copies, each as fast as its slowest rank, times the ranks."""
        found = torch.tensor([self._copied_s() for _ in range(2)], dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        return COPY_B * dist.get_world_size() / float(found.min())

    def _copied_s(self) -> float:
        dist.barrier(group=self._group)
        start = time.perf_counter()
        self._target.copy_(self._source)
        return time.perf_counter() - start

    def runs(self, once: Callable[[], T], count: int, usual_B_per_s: float | None = None) -> list[Run[T]]:
        """`count` runs in their order: those with memory nearest to `usual_B_per_s` out of up to `MOST` times as many, fewer as
        soon as enough are close to it; without it the first ones. Decided alike on all ranks, by what they have measured together.
        """
        if usual_B_per_s is None:
            return [self._run(once) for _ in range(count)]
        found = list[Run[T]]()
        while len(found) < MOST * count and sum(is_close(x, usual_B_per_s) for x in speeds(found)) < count:
            found.append(self._run(once))
        return [found[i] for i in nearest(speeds(found), usual_B_per_s, count)]

    def _run(self, once: Callable[[], T]) -> Run[T]:
        before_B_per_s, result = self.copy_B_per_s(), once()
        return Run(result, 2.0 / (1.0 / before_B_per_s + 1.0 / self.copy_B_per_s()))


def speeds(runs: Sequence[Run[T]]) -> list[float]:
    """Of memory, by run."""
    return [run.copy_B_per_s for run in runs]


def is_close(copy_B_per_s: float, usual_B_per_s: float) -> bool:
    """Whether what was measured at this speed of memory counts."""
    return abs(copy_B_per_s / usual_B_per_s - 1.0) <= CLOSE


def nearest(copy_B_per_s: Sequence[float], usual_B_per_s: float, count: int) -> list[int]:
    """Positions, in ascending order, of the `count` speeds that are nearest to the usual one; the first of equally near ones."""
    off = np.abs(np.asarray(copy_B_per_s) / usual_B_per_s - 1.0)
    return sorted(np.argsort(np.maximum(off, CLOSE), kind="stable")[:count].tolist())
