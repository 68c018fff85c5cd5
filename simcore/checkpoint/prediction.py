"""What a way to checkpoint costs a job, played by the simulator: stall, whole save, load, load into another parallelism."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from costmodels import storage
from costmodels.specs import StoreSpec
from simcore.checkpoint import ettr
from simcore.checkpoint.jobs import CheckpointJob
from simcore.checkpoint.load_tasks import load_tasks
from simcore.checkpoint.save_tasks import save_tasks
from simcore.draft import Draft
from simcore.plan import Plan

STREAMS = (1, 2, 4, 8, 16)
"""assumption: a rank has no more than 16 of its host's cores for streams."""
PARTS_B = (8 * 2**20, 256 * 2**20)
"""Least and most of a part of a file: requests that are worth their latency, and a retry that does not cost minutes."""
WORTH = 0.05
"""Streams are doubled as long as that saves such a share of an upload."""

Evaluate = Callable[[Plan], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of one way to checkpoint. `first_stall_s` is the first save's, which plans; `save_s` from its start until it counts;
    `reshard_s` a load into another parallelism, None where there is none to load into."""

    stall_s: float
    first_stall_s: float
    save_s: float
    load_s: float
    reshard_s: float | None

    def described(self) -> dict[str, float | None]:
        """As JSON holds it, to four digits."""
        return {
            name: None if value is None else float(f"{value:.4g}")
            for name in self.__slots__
            for value in (getattr(self, name),)
        }


def times(job: CheckpointJob, evaluate: Evaluate, again: CheckpointJob | None = None) -> Times:
    """`again` is the job in the parallelism into which a load reshards."""
    stall_s = evaluate(alone(job, save_tasks(job, stall_only=True)))
    planned = not job.system.cached_plan
    return Times(
        stall_s=stall_s,
        first_stall_s=stall_s if planned else evaluate(alone(job, save_tasks(job, first=True, stall_only=True))),
        save_s=evaluate(alone(job, save_tasks(job))),
        load_s=evaluate(alone(job, load_tasks(job, job.choice))),
        reshard_s=None if again is None else evaluate(alone(again, load_tasks(again, job.choice))),
    )


def alone(job: CheckpointJob, draft: Draft) -> Plan:
    """A plan of these tasks and nothing else."""
    return Plan(
        name=f"checkpoint, {job.system.title}",
        n_ranks=job.choice.n_ranks,
        groups=job.groups,
        tasks=tuple(draft.tasks),
    )


def streams_and_part_B(store: StoreSpec, sizes_B: Sequence[int], writers: int, port_B_per_s: float) -> tuple[int, int]:
    """Streams of a file and the size of its parts, for `writers` files of at most `sizes_B` at a time.

    No more streams than speed up the upload of the largest: beyond the store's share of a writer, or the port that it shares, they
    only make more requests.
    """
    largest = max(sizes_B, default=0)
    share = min(port_B_per_s, store.write_B_per_s / max(writers, 1))
    best, best_s = (1, _part_B(largest, 1)), np.inf
    for streams in STREAMS:
        part = _part_B(largest, streams)
        requests = max(-(-largest // part), 1)
        found = storage.demand(store, requests, min(streams, requests), write=True)
        seconds = found.latency_s + largest / min(found.cap_B_per_s, share)
        if seconds < (1.0 - WORTH) * best_s:
            best, best_s = (streams, part), seconds
    return best


def _part_B(nbytes: int, streams: int) -> int:
    return int(np.clip(-(-nbytes // streams), *PARTS_B))


def failing_job(iteration_s: float, cost_s: float, found: Times, mtbf_s: float, restart_s: float) -> ettr.Job:
    """The job whose ETTR is asked for; `cost_s` is what a checkpoint costs training, stall and slower iterations together."""
    return ettr.Job(
        iteration_s=iteration_s,
        every=1,
        stall_s=cost_s,
        save_s=max(found.save_s, cost_s),
        load_s=found.load_s,
        mtbf_s=mtbf_s,
        restart_s=restart_s,
    )


def ettr_described(job: ettr.Job, every: int, seed: int, shape: float) -> Mapping[str, Any]:
    """ETTR at `every`, expected and from simulated failures; the best interval beside Young's, Daly's and the paper's formulas."""
    chosen = replace(job, every=every)
    found = ettr.measured(chosen, np.random.default_rng(seed), shape=shape)
    one = float(np.asarray(job.iteration_s))
    return {
        "expected": _digits(ettr.expected(chosen)),
        "measured": _digits(found.ettr),
        "error": float(f"{float(found.error):.2g}"),
        "best_every": ettr.best_every(job),
        "young_every": max(round(float(ettr.young_s(job.stall_s, job.mtbf_s)) / one), 1),
        "daly_every": max(round(float(ettr.daly_s(job.stall_s, job.mtbf_s)) / one), 1),
        "half_save": _digits(ettr.paper_half_save(chosen)),
        "whole_save": _digits(ettr.paper_whole_save(chosen)),
    }


def _digits(value: Any) -> float:
    return round(float(np.asarray(value)), 5)
