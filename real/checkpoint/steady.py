"""Runs that count: those during which this machine's memory was as fast as when costs were measured.

Which runs count is decided by copies alone (`real.checkpoint.speed`), never by what a run took.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch.distributed as dist

from real.checkpoint.speed import Speed, Speedometer

CLOSE = 0.12
"""Share by which the speed of memory may differ; copies with nothing else in the way differ by half of that."""
MOST = 2
"""Times as many runs as are asked for, until there are enough that count."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run(Generic[T]):
    """What a run gave, and how fast memory was around it."""

    result: T
    speed: Speed


def steady_runs(
    speedometer: Speedometer, once: Callable[[], T], count: int, usual_B_per_s: float | None = None
) -> list[Run[T]]:
    """`count` runs in their order: those with memory nearest to `usual_B_per_s` out of up to `MOST` times as many, fewer as soon as
    enough are close to it; without it the first ones. Decided alike on all ranks, by what they have measured together.

    What others have left to be written is on the disk before the first.
    """
    if dist.get_rank() == 0 and hasattr(os, "sync"):
        os.sync()
    found, before = list[Run[T]](), speedometer.speed()
    while not _enough(found, count, usual_B_per_s):
        result, after = once(), speedometer.speed()
        found.append(Run(result, Speed.between(before, after)))
        before = after
    return found if usual_B_per_s is None else [found[i] for i in nearest(copies(found), usual_B_per_s, count)]


def _enough(found: Sequence[Run[T]], count: int, usual_B_per_s: float | None) -> bool:
    """Whether `count` runs count, or no more are to be tried."""
    if usual_B_per_s is None:
        return len(found) == count
    return len(found) == MOST * count or sum(is_close(x, usual_B_per_s) for x in copies(found)) == count


def copies(found: Sequence[Run[T]]) -> list[float]:
    """Bytes per second, by run."""
    return [run.speed.copy_B_per_s for run in found]


def is_close(copy_B_per_s: float, usual_B_per_s: float) -> bool:
    """Whether what was measured at this speed of memory counts."""
    return abs(copy_B_per_s / usual_B_per_s - 1.0) <= CLOSE


def nearest(copy_B_per_s: Sequence[float], usual_B_per_s: float, count: int) -> list[int]:
    """Positions, in ascending order, of the `count` speeds that are nearest to the usual one; the first of equally near ones."""
    off = np.abs(np.asarray(copy_B_per_s) / usual_B_per_s - 1.0)
    return sorted(np.argsort(np.maximum(off, CLOSE), kind="stable")[:count].tolist())
