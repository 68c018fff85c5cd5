"""Checkpointed training for real: windtunnel's own checkpoints, by themselves or with training beside them."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from real.checkpoint.speed import SHARED_MEMORY, Speed
from real.checkpoint.steady import is_close
from real.here import most_ranks, path_taken
from real.launch import launch
from real.traces import trace_of
from real.worker import PLAN, RESULT
from real.workloads import transformer_training
from simcore.cluster import Cluster
from simcore.errors import Problem
from simcore.plan import Plan
from simcore.progress import Progress, part
from simcore.trace import Trace

SYSTEMS = ("windtunnel", "windtunnel_sync")
STORES: Mapping[str, Path] = {
    "dev_shm": SHARED_MEMORY,
    "this_machine_shm": SHARED_MEMORY,
    "this_machine_disk": Path(),
}
"""Where a store of the catalogue is on this machine; the disk is that of the current folder."""
PREPARE = "prepare"
"""Tells workers only to save what others will load."""
COPIES = 3
"""Checkpoints that are there at a time: the last, one that is being written, and room for what the file system needs."""


def lacking(plan: Plan) -> list[Problem]:
    """What keeps the plan from running here."""
    chosen = plan.decisions["checkpoint"]
    found = _of_training(plan) if chosen["plays"] == "training" else _of_ranks(plan)
    rules = [
        ("planner.system", chosen["system"], chosen["system"] in SYSTEMS, f"{' or '.join(SYSTEMS)}; others are only simulated"),
        ("planner.store", chosen["store"], chosen["store"] in STORES, ", ".join(STORES)),
        ("workload.loader", plan.workload["loader_B"], not plan.workload["loader_B"], "0: loaders' states are only simulated"),
    ]  # fmt: skip
    found += [Problem(field, repr(given), allowed) for field, given, holds, allowed in rules if not holds]
    return found or _room(chosen["store"], int(chosen["bytes"]))


def _of_training(plan: Plan) -> list[Problem]:
    """Of a plan that trains beside its save."""
    zero, mesh = plan.decisions["zero"], plan.decisions["parallelism"]
    rows = plan.decisions["checkpoint"]["rows"]
    rules = [
        ("planner.tp", mesh["tp"], mesh["tp"] == 1, "1 beside training; `plays: save` and loads have any"),
        ("planner.zero", zero, zero != 2, "0, 1 or 3"),
        ("planner.rows", rows, rows or zero != 3, "true with zero 3: FSDP2 is what runs here"),
    ]
    own = [Problem(field, repr(given), allowed) for field, given, holds, allowed in rules if not holds]
    return [*transformer_training.lacking(plan), *own]


def _of_ranks(plan: Plan) -> list[Problem]:
    """Of a plan of saves or loads by themselves, whose tensors are made up: any parallelism but contexts, which share weights."""
    most, what = most_ranks()
    ranks = max(plan.n_ranks, _saved_ranks(plan))
    cp = plan.decisions["parallelism"]["cp"]
    rules = [
        ("n_ranks", ranks, ranks <= most, f"at most {most}, the {what}"),
        ("planner.cp", cp, cp == 1, "1: context parallelism is only simulated"),
    ]
    return [Problem(field, repr(given), allowed) for field, given, holds, allowed in rules if not holds]


def _saved_ranks(plan: Plan) -> int:
    """Ranks that save what the plan loads."""
    mesh = plan.decisions["saved_parallelism"]
    return int(mesh["dp"] * mesh["tp"] * mesh["pp"] * mesh["cp"])


def _room(store: str, nbytes: int) -> list[Problem]:
    folder = STORES[store]
    if not folder.is_dir():
        return [Problem("planner.store", store, "a store that this machine has", f"There is no {folder}.")]
    free = shutil.disk_usage(folder).free
    if free >= COPIES * nbytes:
        return []
    allowed = f"{COPIES} checkpoints of {nbytes / 1e9:.3g} GB"
    return [
        Problem("planner.store", f"{free / 1e9:.3g} GB free in {folder.resolve()}", allowed, "Take a smaller model.")
    ]


def run(plan: Plan, cluster: Cluster, *, progress: Progress | None = None) -> Trace:
    """The trace of the plan's ranks. Raises `CannotRun` with what a worker said before it failed."""
    chosen = plan.decisions["checkpoint"]
    if progress:
        progress(0.0, f"starting {plan.n_ranks} processes, {path_taken()}")
    store, usual = STORES[chosen["store"]], usual_speed(plan, cluster)
    with tempfile.TemporaryDirectory(dir=store, prefix=".windtunnel-checkpoints-") as root:
        if chosen["plays"] in ("load", "reshard") and _saved_ranks(plan) != plan.n_ranks:
            _launched(plan, _saved_ranks(plan), root, PREPARE, part(progress, 0.0, 0.3))
        results = _launched(
            plan, plan.n_ranks, root, str(usual.copy_B_per_s if usual else 0.0), part(progress, 0.3, 1.0)
        )
    if progress:
        progress(1.0, "done")
    speeds = [Speed(**speed) for speed in results[0]["speeds"]]
    return _noted(trace_of(plan, cluster, without_gaps(results)), speeds, usual)


def usual_speed(plan: Plan, cluster: Cluster) -> Speed | None:
    """How fast memory and disk were in all when costs were measured; None where memory's is unknown, or ranks leave cores idle."""
    measured = cluster.device(0).measured
    known = {f.name: float(str(measured[f.name])) for f in fields(Speed) if f.name in measured}
    wanted = {f.name for f in fields(Speed) if f.default is MISSING}
    if not wanted <= known.keys() or plan.n_ranks < (os.cpu_count() or 1):
        return None
    return Speed(**known)


def _noted(trace: Trace, speeds: Sequence[Speed], usual: Speed | None) -> Trace:
    """How fast memory was in each run, and a warning where that was not as costs were measured."""
    said = {"speeds": [asdict(s) for s in speeds], "usual_speed": None if usual is None else asdict(usual)}
    noted = replace(trace, environment={**trace.environment, **said})
    copies = [s.copy_B_per_s for s in speeds]
    other = [x for x in copies if usual is not None and not is_close(x, usual.copy_B_per_s)]
    if usual is None or not other:
        return noted
    runs = f"{len(other)} of {len(copies)} runs"
    text = f"memory copied {median(other) / 1e9:.3g} GB/s in {runs}, {usual.copy_B_per_s / 1e9:.3g} when calibrated"
    return replace(noted, warnings=(*trace.warnings, text))


def without_gaps(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same ranks, but each save or load begins when the one before has ended on all of them.

    Between two loads a worker fills tensors with something else and afterwards looks at every element: no part of a load.
    """
    gaps_s, ended_s = list[float](), None
    for bounds in zip(*(r["bounds"] for r in results), strict=True):
        begun_s = min(start for start, _ in bounds)
        gaps_s.append(0.0 if ended_s is None else gaps_s[-1] + begun_s - ended_s)
        ended_s = max(end for _, end in bounds)
    return [_earlier(r, gaps_s) for r in results]


def _earlier(result: Mapping[str, Any], gaps_s: Sequence[float]) -> Mapping[str, Any]:
    """A rank with its iterations moved to earlier by `gaps_s`; what it did before the first one stays where it is."""
    bounds = [(a - gap_s, b - gap_s) for (a, b), gap_s in zip(result["bounds"], gaps_s, strict=True)]
    gaps = dict(enumerate(gaps_s))
    pieces = [(task, i, a - gaps.get(i, 0.0), b - gaps.get(i, 0.0), size) for task, i, a, b, size in result["pieces"]]
    return {**result, "bounds": bounds, "pieces": pieces}


def _launched(plan: Plan, ranks: int, root: str, what: str, progress: Progress | None) -> list[Mapping[str, Any]]:
    """What every rank left in its file; nothing where ranks only prepare."""
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        plan.save(folder / PLAN)
        arguments = [str(Path(root).resolve()), what]
        launch("real.checkpoint.worker", ranks, folder, arguments=arguments, progress=progress)
        return (
            [] if what == PREPARE else [json.loads((folder / RESULT.format(rank=r)).read_text()) for r in range(ranks)]
        )
