"""How much of a job's time is training that counts (effective training time ratio), under failures and checkpoints.

A job trains `every` iterations, saves, goes on while the save finishes in the background, and fails at random. After a failure it
restarts, loads the last checkpoint that was complete, and goes on from there; what it had trained since then is lost. A job that
has loaded a checkpoint remembers nothing older, so what happens between two failures depends on the time between them alone, and
a measured ETTR needs no more than many such times. Fields of a `Job` are numbers or arrays that broadcast.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simcore.errors import InputError, Problem

Floats = NDArray[np.float64]

FAILURES = 20_000
"""Drawn to measure an ETTR, which is then known to about half a per cent where a failure loses as much as it leaves."""
MOST_EVERY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training job with checkpoints.

    `iteration_s` an iteration without checkpoints; `every` iterations from one checkpoint to the next; `stall_s` what a save keeps
    training waiting; `save_s` from the start of a save until the checkpoint counts, with the stall; `load_s` reading the
    checkpoint; `restart_s` noticing a failure, replacing what broke and starting the processes; `mtbf_s` mean time between
    failures of the whole job.
    """

    iteration_s: ArrayLike
    every: ArrayLike
    stall_s: ArrayLike
    save_s: ArrayLike
    load_s: ArrayLike
    mtbf_s: ArrayLike
    restart_s: ArrayLike = 0.0

    @property
    def work_s(self) -> Floats:
        """Training between two checkpoints."""
        return _array(self.every) * _array(self.iteration_s)

    @property
    def stalled_s(self) -> Floats:
        """What a checkpoint keeps training waiting: a save also waits for the one before it."""
        return np.maximum(_array(self.stall_s), _array(self.save_s) - self.work_s)

    @property
    def recovery_s(self) -> Floats:
        """From a failure to the first new iteration."""
        return _array(self.restart_s) + _array(self.load_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An ETTR from simulated failures; `error` is its standard error."""

    ettr: Floats
    error: Floats


def _array(value: ArrayLike) -> Floats:
    return np.asarray(value, dtype=np.float64)


def job_mtbf_s(device_mtbf_s: float, devices: int) -> float:
    """Mean time between failures of a job that any one device stops, for failures that do not depend on each other."""
    return device_mtbf_s / devices


def problems_of(job: Job) -> list[Problem]:
    """Everything about a job that makes no sense."""
    found = []
    for name in Job.__slots__:
        values = np.asarray(getattr(job, name), dtype=np.float64)
        positive = name in ("iteration_s", "every", "mtbf_s")
        if not np.all(np.isfinite(values)) or np.any(values < 0) or (positive and np.any(values == 0)):
            found.append(Problem(name, str(getattr(job, name))[:80], "more than 0" if positive else "at least 0"))
    return found


def check(job: Job) -> None:
    """Raises `InputError` for times that make no sense."""
    problems = problems_of(job)
    if problems:
        raise InputError("a job that cannot be", problems)


def intervals_s(mtbf_s: float, count: int, rng: np.random.Generator, shape: float = 1.0) -> Floats:
    """(count,) times between failures of that mean: exponential, or with another `shape` Weibull's (below 1: failures come in
    bunches; Schroeder and Gibson 2006 find 0.7 to 0.8 on large machines)."""
    from scipy.special import gamma

    return np.asarray(rng.weibull(shape, count) * (mtbf_s / gamma(1.0 + 1.0 / shape)), dtype=np.float64)


def useful_s(job: Job, between_s: ArrayLike) -> Floats:
    """Training that is kept of each time between two failures: what a complete checkpoint holds. Broadcasts.

    The j-th checkpoint since the restart starts after j times the work and j - 1 stalls, and counts `save_s` later.
    """
    later = _array(between_s) - job.recovery_s - job.work_s - _array(job.save_s)
    complete = np.floor(later / (job.work_s + job.stalled_s)) + 1.0
    return np.asarray(np.where(later >= 0.0, complete, 0.0) * job.work_s)


def measured(job: Job, rng: np.random.Generator, failures: int = FAILURES, shape: float = 1.0) -> Measured:
    """ETTR over so many simulated failures, the same ones for every element of an array of jobs, so that jobs compare."""
    check(job)
    return measured_between(job, intervals_s(1.0, failures, rng, shape))


def measured_between(job: Job, unit: Floats) -> Measured:
    """ETTR over times between failures of `unit` (failures,) times the job's mean."""
    mean = np.broadcast_to(job.mtbf_s, np.broadcast_shapes(*(np.shape(getattr(job, n)) for n in Job.__slots__)))
    each = [_ratio(job, float(m), unit, at) for at, m in np.ndenumerate(mean)]
    ettr, error = (np.array([e[i] for e in each]).reshape(mean.shape) for i in (0, 1))
    return Measured(ettr=ettr, error=error)


def _ratio(job: Job, mtbf_s: float, unit: Floats, at: tuple[int, ...]) -> tuple[float, float]:
    """Kept over all time, and the standard error of that ratio."""
    between = unit * mtbf_s
    kept = useful_s(_element(job, at), between)
    ratio = float(kept.sum() / between.sum())
    return ratio, float((kept - ratio * between).std(ddof=1) / (between.mean() * np.sqrt(len(unit))))


def _element(job: Job, at: tuple[int, ...]) -> Job:
    shape = np.broadcast_shapes(*(np.shape(getattr(job, n)) for n in Job.__slots__))
    return Job(**{n: float(np.broadcast_to(getattr(job, n), shape)[at]) for n in Job.__slots__})


def expected(job: Job) -> Floats:
    """ETTR in the long run where times between failures are exponential.

    The j-th checkpoint after a restart is reached with probability exp(-(recovery + save + j work + (j - 1) stall) / mtbf): a
    geometric series, work times whose sum is kept in a mean time between failures.
    """
    check(job)
    mtbf = _array(job.mtbf_s)
    first = np.exp(-(job.recovery_s + job.work_s + _array(job.save_s)) / mtbf)
    return np.asarray(job.work_s / mtbf * first / -np.expm1(-(job.work_s + job.stalled_s) / mtbf))


def best_every(job: Job, most: int = MOST_EVERY) -> int:
    """The number of iterations between checkpoints with the highest expected ETTR, whatever `job.every` says.

    Numbers that are too many to try one by one are tried 2 % apart, then all around the best of them.
    """
    coarse = np.unique(np.round(np.geomspace(1, most, 1 + int(np.log(most) / np.log(1.02)))).astype(np.int64))
    best = int(coarse[int(expected(replace(job, every=coarse)).argmax())])
    near = np.arange(max(int(best / 1.03), 1), min(int(best * 1.03) + 2, most + 1))
    return int(near[int(expected(replace(job, every=near)).argmax())])


def measured_best_every(job: Job, candidates: Sequence[int], rng: np.random.Generator, shape: float = 1.0) -> int:
    """The best of `candidates` under the same simulated failures."""
    found = measured(replace(job, every=np.asarray(candidates)), rng, shape=shape)
    return int(candidates[int(found.ettr.argmax())])


def young_s(stall_s: ArrayLike, mtbf_s: ArrayLike) -> Floats:
    """Best training time between checkpoints to first order: sqrt(2 stall mtbf) (Young 1974)."""
    return np.asarray(np.sqrt(2.0 * _array(stall_s) * _array(mtbf_s)))


def daly_s(stall_s: ArrayLike, mtbf_s: ArrayLike) -> Floats:
    """The same with higher-order terms (Daly 2006, eq. 37): the mean time between failures where a stall is twice as long."""
    stall, mtbf = _array(stall_s), _array(mtbf_s)
    small = np.sqrt(stall / (2.0 * mtbf))
    return np.where(small < 1.0, young_s(stall, mtbf) * (1.0 + small / 3.0 + small**2 / 9.0) - stall, mtbf)


def paper_half_save(job: Job) -> Floats:
    """One reading of Wan et al. 2025 (ByteCheckpoint): an interval ends in a failure that costs half of it, half a save, a load.

    It knows no mean time between failures, nor the time to restart.
    """
    wasted = (job.work_s + _array(job.save_s)) / 2.0 + _array(job.load_s)
    return np.asarray(job.work_s / (job.work_s + wasted))


def paper_whole_save(job: Job) -> Floats:
    """The other reading, after Gemini (Wang et al. 2023): a whole save, a load and half an interval are lost of their sum."""
    around = _array(job.save_s) + _array(job.load_s)
    return np.asarray(1.0 - (around + job.work_s / 2.0) / (around + job.work_s))
