"""`windtunnel calibrate --operators`: times of a model's operators on this machine, in every precision that it has.

The whole model trains on all ranks at once, in each precision and each beside another, as plans do, without communication, one
iteration of each in turn. What each operator takes is shared out among its kernels (`real.precision.attribution`), and
kept in the device's `measured.operators`.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from costmodels import compute
from costmodels.catalog import Catalog, write_entry
from costmodels.kernels import Kernel
from costmodels.measured import key_of
from costmodels.operator_graph import OperatorGraph
from costmodels.precision import PRECISIONS, allowed, casts, flows, of_device
from costmodels.precision_kernels import cast
from costmodels.specs import DeviceSpec
from real.calibrate import provenance
from real.launch import Progress, launch
from real.precision.attribution import attribute
from real.precision.drafting import Part, draft
from real.precision.models import NAMES, build
from real.precision.placing import HAS
from real.precision.products import widened_here
from real.precision.profile_worker import CASTS, PROFILES, RUNS
from real.precision.tracing import trace
from simcore.errors import InputError, Problem
from simcore.plan import Compute, Plan

DEVICE = "this_machine"
LIMITED = "this_machine_limited"
"""The same measurements under a second name: planners limit the memory of a device by its name."""
FASTER = 1.1
"""float16 is offered beside bfloat16 where it is at least this much faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is profiled: a model's graph with `batch` samples a rank, its optimizer, and precisions (None: all there are)."""

    model: str
    graph: OperatorGraph
    batch: int
    optimizer: str
    precisions: tuple[str, ...] | None = None


def calibrate_operators(
    out: Path, given: Sequence[str], *, quick: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Profile the models of scenarios (`PATH.yaml`), or `MODEL:BATCH`, and add what was found to `out`/devices/this_machine.yaml.

    Returns what was measured, in short. Raises `InputError` for what names neither, and where there is no calibration yet.
    """
    path = out / "devices" / f"{DEVICE}.yaml"
    if not path.is_file():
        problem = Problem("--operators", str(path), "an earlier calibration", "Run `windtunnel calibrate` first.")
        raise InputError("this machine has not been measured", [problem])
    ranks = min(max(os.cpu_count() or 1, 2), 8)
    document = yaml.safe_load(path.read_text())
    source = add_precisions(document, ranks)
    for name in (DEVICE, LIMITED):
        write_entry(out, "devices", name, document)
    device = Catalog([out]).device(DEVICE)
    jobs = [job for text in given for job in jobs_of(text, out)]
    tables: dict[str, int] = {}
    for number, job in enumerate(jobs):

        def told(share: float, phrase: str, number: int = number, job: Job = job) -> None:
            if progress is not None:
                progress((number + share) / len(jobs), f"{job.model}, batch {job.batch}: {phrase}")

        found = profile(job, device, ranks, quick=quick, progress=told)
        tables |= merge(document["measured"], found)
    document["measured"]["operators_source"] = source
    for name in (DEVICE, LIMITED):
        write_entry(out, "devices", name, document)
    return {
        "source": source,
        "flop_per_s": {p: document["flop_per_s"][p]["value"] for p in PRECISIONS if p in document["flop_per_s"]},
        "points": dict(sorted(tables.items())),
    }


def jobs_of(text: str, out: Path) -> list[Job]:
    """The models and batches that a scenario's plan uses, or those of `MODEL:BATCH[,BATCH...][:OPTIMIZER]`."""
    if text.endswith((".yaml", ".yml")):
        return _of_scenario(Path(text), out)
    model, _, rest = text.partition(":")
    batches, _, optimizer = rest.partition(":")
    if model not in NAMES or not batches or not all(b.isdigit() and int(b) for b in batches.split(",")):
        allowed_form = f"a scenario's path, or MODEL:BATCH, such as small_resnet:64, with one of {', '.join(NAMES)}"
        raise InputError("nothing to profile", [Problem("--operators", repr(text), allowed_form)])
    graph = trace(build(model))
    return [
        Job(model=model, graph=graph, batch=int(b), optimizer=optimizer or "sgd_momentum") for b in batches.split(",")
    ]


def _of_scenario(path: Path, out: Path) -> list[Job]:
    from simcore.scenario import load

    plan = load(path, folders=[out]).plan()
    if plan.workload.get("name") != "operator_training":
        problem = Problem("--operators", str(path), "a scenario whose workload is operator_training")
        raise InputError("no operators to profile", [problem])
    model, optimizer = str(plan.workload["model"]), str(plan.workload["optimizer"])
    optimizer += "_momentum" if optimizer == "sgd" and plan.workload.get("momentum") else ""
    graph = trace(build(model))
    batches = sorted(set(plan.decisions["batch"].values()))
    return [Job(model=model, graph=graph, batch=int(batch), optimizer=optimizer) for batch in batches]


def profile(job: Job, device: DeviceSpec, ranks: int, *, quick: bool, progress: Progress | None) -> dict[Kernel, float]:
    """Seconds of one launch of each kernel of a step, from iterations in every precision of the device."""
    of_ranks, _ = side_by_side([job], {}, device, ranks, 4 if quick else 20, progress)
    return {k: float(np.mean([found[k] for found in of_ranks])) for k in of_ranks[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A plan as it ran beside profiles: mean seconds of an iteration and of each rank's tasks, and bytes of its tensors."""

    iteration_s: float
    tasks_s: tuple[Mapping[str, float], ...]
    tensors_B: tuple[int, ...]


def side_by_side(
    jobs: Sequence[Job],
    runs: Mapping[str, Plan],
    device: DeviceSpec,
    ranks: int,
    rounds: int,
    progress: Progress | None,
) -> tuple[list[dict[Kernel, float]], dict[str, Ran]]:
    """What kernels of the jobs take on each rank, and what plans take that run in the same rounds.

    Of each plan the middle half of its rounds counts.
    """
    has = of_device(device)
    plans = {
        f"{n}-{'-'.join(of_ranks)}": _alone(job, of_ranks, device)
        for n, job in enumerate(jobs)
        for of_ranks in _beside(job.precisions or has, ranks)
    }
    changes = sorted({change for job in jobs for change in _changes(job, has)})
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        for kind, of in ((PROFILES, plans), (RUNS, runs)):
            for stem, plan in of.items():
                plan.save(folder / kind / f"{stem}.json")
        found = _run(folder, ranks, has, changes, rounds, progress)
    usual = {stem: _usual([r[PROFILES][stem] for r in found]) for stem in plans}
    of_ranks = [_attributed(r, plans, changes, device, usual) for r in found]
    return of_ranks, {stem: _ran([r[RUNS][stem] for r in found]) for stem in runs}


def _attributed(
    found: Mapping[str, Any],
    plans: Mapping[str, Plan],
    changes: Sequence[tuple[str, str, int]],
    device: DeviceSpec,
    usual: Mapping[str, NDArray[np.int64]],
) -> dict[Kernel, float]:
    """What kernels take on the rank that found this."""
    rows = [
        (task.op.kernels, _mean(found[PROFILES][stem]["tasks"][task.id], usual[stem]))
        for stem, plan in plans.items()
        for task in plan.tasks
        if isinstance(task.op, Compute) and task.id in found[PROFILES][stem]["tasks"]
    ]
    first = {replace(k, count=1): compute.estimate(replace(k, count=1), device).seconds for run, _ in rows for k in run}
    for (source, target, elements), (looking, rest) in zip(changes, found["casts"], strict=True):
        *amax, one = cast(_change(source, target, elements))
        first[one] = float(rest)
        if amax:
            first[amax[0]] = float(looking)
    return attribute(rows, first)


def _beside(precisions: Sequence[str], ranks: int) -> list[tuple[str, ...]]:
    """Precisions of the ranks of each profile: all in one, and each beside the next. What shares a memory is in each other's way,
    and ranks that do the same at the same time most of all."""
    n = len(precisions)
    found = [tuple(precisions[(i + r * shift) % n] for r in range(ranks)) for shift in (0, 1) for i in range(n)]
    return list(dict.fromkeys(found))


def _alone(job: Job, precisions: Sequence[str], device: DeviceSpec) -> Plan:
    has = of_device(device)
    parts = {
        f"rank{r}": Part(ranks=(r,), device=device, batch=job.batch, precision=uniform(job.graph, precision, has))
        for r, precision in enumerate(precisions)
    }
    return draft(job.graph, job.model, parts, optimizer=job.optimizer, iterations=1)


def _usual(of_ranks: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """Numbers of a plan's rounds but for the quarter that took longest and the quarter that took least."""
    bounds = np.array([r["bounds"] for r in of_ranks])
    order = np.argsort(bounds[..., 1].max(axis=0) - bounds[..., 0].min(axis=0), kind="stable")
    return np.sort(order[len(order) // 4 : len(order) - len(order) // 4])


def _mean(by_round: Sequence[float], usual: NDArray[np.int64]) -> float:
    return float(np.pad(by_round, (0, int(usual[-1]) + 1))[usual].mean())


def _ran(of_ranks: Sequence[Mapping[str, Any]]) -> Ran:
    usual = _usual(of_ranks)
    bounds = np.array([r["bounds"] for r in of_ranks])[:, usual]
    return Ran(
        iteration_s=float((bounds[..., 1].max(axis=0) - bounds[..., 0].min(axis=0)).mean()),
        tasks_s=tuple({task: _mean(by_round, usual) for task, by_round in r["tasks"].items()} for r in of_ranks),
        tensors_B=tuple(int(r["tensors_B"] or 0) for r in of_ranks),
    )


def uniform(graph: OperatorGraph, precision: str, has: Sequence[str]) -> dict[str, str]:
    """Every adjustable operator in `precision`, or in the narrowest wider one that it can have."""
    at = PRECISIONS.index(precision)
    chosen = {}
    for operator in graph:
        fits = [p for p in allowed(operator, has) if PRECISIONS.index(p) >= at]
        if fits:
            chosen[operator.name] = fits[0]
    return chosen


def _changes(job: Job, has: Sequence[str]) -> list[tuple[str, str, int]]:
    """Every cast that a run in one precision does, each once."""
    found = {
        (c.source, c.target, c.elements)
        for p in job.precisions or has
        for c in casts(job.graph, flows(job.graph, uniform(job.graph, p, has), has), job.batch)
    }
    return sorted(found)


def _change(source: str, target: str, elements: int) -> Any:
    from costmodels.precision import Cast

    return Cast("", "forward", "", source, target, elements)


def add_precisions(document: dict[str, Any], ranks: int) -> str:
    """Add the precisions that this machine has, with the rate of a product in each while all ranks are busy; returns the source."""
    source = f"{provenance()}, {ranks} processes at once"
    _add_rates(document, _measure_rates(ranks), source)
    document["measured"]["widened"] = widened_here()
    return source


def _measure_rates(ranks: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        found = _run(Path(name), ranks, [], [], 1, None)
    return {p: float(np.mean([r["rates"][p] for r in found])) for p in found[0]["rates"]}


def _run(
    folder: Path,
    ranks: int,
    has: Sequence[str],
    changes: Sequence[tuple[str, str, int]],
    rounds: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    (folder / HAS).write_text(json.dumps([list(has)] * ranks))
    (folder / CASTS).write_text(json.dumps(changes))
    launch("real.precision.profile_worker", ranks, folder, arguments=[str(rounds)], progress=progress)
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(ranks)]


def _add_rates(document: dict[str, Any], rates: Mapping[str, float], source: str) -> None:
    """Precisions that this machine has; float32 keeps the rate of its calibration."""
    peaks = document["flop_per_s"]
    for precision, rate in rates.items():
        slow = precision == "float16" and rate < FASTER * rates["bfloat16"]
        if precision != "float32" and not slow:
            peaks[precision] = {"value": rate, "source": f"{source}; a product of (1024, 512) and (512, 512)"}


def merge(measured: dict[str, Any], found: Mapping[Kernel, float]) -> dict[str, int]:
    """Add points to the tables, in place of earlier ones of the same sizes; returns the number of points of each table."""
    tables = measured.setdefault("operators", {})
    for k, seconds in found.items():
        table = tables.setdefault(key_of(k.name, k.dtype), [])
        sizes = dict(k.shape)
        table[:] = [row for row in table if {s: v for s, v in row.items() if s != "seconds"} != sizes]
        table.append({**sizes, "seconds": float(seconds)})
    return {key: len(rows) for key, rows in tables.items()}
