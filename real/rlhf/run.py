"""Run a job on a placement: start processes, iterate, keep what was learnt, end the processes whatever happens."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray

from costmodels.files import write_atomically
from real.rlhf.algorithms import Dataflow
from real.rlhf.controller import Model, Pool, finish
from real.rlhf.job import Job
from real.rlhf.placement import Placement

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
        ray.init(num_cpus=sum(sizes), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    pools: list[Pool] = []
    try:
        pools += [Pool(f"pool{i}", size, folder) for i, size in enumerate(sizes)]
        for pool in pools:
            pool.join()
        yield pools
    finally:
        for pool in pools:
            pool.kill()
        if own:
            ray.shutdown()


def place(job: Job, placement: Placement, pools: Sequence[Pool]) -> Dataflow:
    """Make the models of `job`, as training starts, on pools of the placement's sizes; what was on them is dropped."""
    placement.check(job)
    assert [pool.size for pool in pools] == [spec.n_ranks for spec in placement.pools]
    models = {
        role: Model(role, pool, degrees)
        for pool, spec in zip(pools, placement.pools, strict=True)
        for role, degrees in spec.degrees.items()
    }
    for pool in pools:
        pool.start(worker.clear.remote() for worker in pool.workers)
    for model in models.values():
        model.build(job)
    finish(pools)
    return Dataflow(job, models)
