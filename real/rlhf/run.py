"""Run a job on a placement: start processes, iterate, keep what was learnt, end the processes whatever happens."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import ray
import torch

from costmodels.files import write_atomically
from real.rlhf.algorithms import Dataflow
from real.rlhf.controller import DEFAULT, Model, Pool, finish
from real.rlhf.job import Job
from real.rlhf.placement import Placement
from simcore.errors import CannotRun, Problem

HISTORY = "history.json"

Each = Callable[[int, dict[str, float]], None]


def run(
    job: Job, placement: Placement, iterations: int, folder: Path, *, each: Each | None = None
) -> list[dict[str, float]]:
    """Means of every iteration; also in `folder`/history.json after each, beside the logs of the processes.

    `each` is called with an iteration's number and its means. Raises `InputError` for what does not fit, `CannotRun` with the
    log of a process that failed; what was done until then is in the folder.
    """
    with started(job, placement, folder) as flow:
        return iterate(flow, iterations, folder, each=each)


def iterate(flow: Dataflow, iterations: int, folder: Path, *, each: Each | None = None) -> list[dict[str, float]]:
    """So many iterations of what is started."""
    history: list[dict[str, float]] = []
    for i in range(iterations):
        history.append(flow.iteration())
        write_atomically(folder / HISTORY, json.dumps(history))
        if each:
            each(i, history[-1])
    return history


@contextmanager
def started(job: Job, placement: Placement, folder: Path) -> Iterator[Dataflow]:
    """Models on pools of their own, for as long as the block runs."""
    placement.check(job)
    with processes([spec.n_ranks for spec in placement.pools], folder) as pools:
        yield place(job, placement, pools)


@contextmanager
def processes(sizes: Sequence[int], folder: Path) -> Iterator[list[Pool]]:
    """A pool of so many processes for each size. Uses the Ray that runs already, or one of its own on this machine."""
    own = not ray.is_initialized()
    if own:
        _start_ray(sum(sizes))
    pools: list[Pool] = []
    try:
        free = iter(own_cores(sum(sizes)))
        pools += [Pool(f"pool{i}", size, folder, list(islice(free, size))) for i, size in enumerate(sizes)]
        for pool in pools:
            pool.join()
        yield pools
    finally:
        for pool in pools:
            pool.kill()
        if own:
            ray.shutdown()


def _start_ray(ranks: int) -> None:
    """A Ray of this process. Raises `CannotRun` where it does not start: on a busy machine it gives up after a while."""
    try:
        ray.init(
            num_cpus=ranks,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _system_config={"worker_niceness": 0},  # 15 by default, so that whatever else runs goes first
        )
    except Exception as error:  # what Ray raises here is of no class of its own
        ray.shutdown()
        problem = Problem("ray", str(error), "a Ray that starts", "Try again when the machine is less busy.")
        raise CannotRun("the processes could not be started", [problem]) from error


def own_cores(ranks: int) -> list[int]:
    """A core for each rank, none where ranks have to share them or have GPUs."""
    if torch.cuda.is_available() or not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return cores[:ranks] if ranks <= len(cores) else []


def place(job: Job, placement: Placement, pools: Sequence[Pool]) -> Dataflow:
    """Make the models of `job`, as training starts, on pools of the placement's sizes; what was on them is dropped."""
    placement.check(job)
    assert [pool.size for pool in pools] == [spec.n_ranks for spec in placement.pools]
    models = {
        role: Model(role, pool, degrees, spec.portions.get(role, DEFAULT))
        for pool, spec in zip(pools, placement.pools, strict=True)
        for role, degrees in spec.degrees.items()
    }
    for pool in pools:
        pool.start(worker.clear.remote() for worker in pool.workers)
    for model in models.values():
        model.build(job)
    finish(pools)
    return Dataflow(job, models)
