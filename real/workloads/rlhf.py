"""RLHF for real: the plan's pools as groups of Ray actors, its models a Llama of one size, its rewards checks of a task."""

import os
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from real.here import most_ranks, path_taken
from real.rlhf.algorithms import Dataflow
from real.rlhf.controller import Call, Pool, wait
from real.rlhf.job import ALGORITHMS, Job
from real.rlhf.placement import of_plan
from real.rlhf.run import started
from real.traces import trace_of
from simcore.cluster import Cluster
from simcore.errors import InputError, Problem
from simcore.hybridflow.dataflow import LOG_PROB, PRETRAIN_LOSS
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.trace import Trace
from simcore.workloads.rlhf import PADDED

WARM_UP = 2
"""Iterations before the first that counts."""


def lacking(plan: Plan) -> list[Problem]:
    """What keeps the plan from running here, and what would have to change."""
    found = list(_of_workload(plan.workload, [call["name"] for call in plan.decisions["calls"]]))
    found += [problem for pool in plan.decisions["pools"] for problem in _of_pool(pool, plan.workload)]
    most, what = most_ranks()
    if plan.n_ranks > most:
        found.append(Problem("n_ranks", str(plan.n_ranks), f"at most {most}, the {what}", "Take a smaller cluster."))
    if plan.decisions.get("detail") != "layer":
        allowed = "layer: modules of Hugging Face, nothing hidden behind computing"
        found.append(Problem("planner.detail", str(plan.decisions.get("detail", "chunk")), allowed))
    return found or _of_job(plan)


def run(plan: Plan, cluster: Cluster, *, progress: Progress | None = None) -> Trace:
    """The measured trace. Raises `CannotRun` with the log of a process that failed."""
    job, placement = job_of(plan.workload), of_plan(plan.decisions, plan.workload.get("checked", ()))
    tell = progress or (lambda _share, _phrase: None)
    tell(0.0, f"starting {placement.n_ranks} processes, {path_taken()}")
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name, started(job, placement, Path(name)) as flow:
        bounds, history = _iterate(flow, int(plan.workload["iterations"]), tell)
        results: list[Mapping[str, Any]] = [*_results(plan, flow, bounds)]
    tell(1.0, "done")
    trace = trace_of(plan, cluster, results)
    extra = {**trace.extra, **{name: [means[name] for means in history] for name in history[0]}}
    extra.pop("loss", None)
    return replace(trace, extra=extra, warnings=(*trace.warnings, *_crowded(placement.n_ranks)))


def job_of(workload: Mapping[str, Any]) -> Job:
    """What the plan's workload trains. Raises `InputError` with everything that contradicts itself."""
    return Job(
        algorithm=workload["algorithm"],
        model=workload["models"]["actor"],
        prompts=workload["prompts"],
        answers=workload["samples"],
        prompt_len=workload["lengths"]["prompt"][1],
        response_len=workload["lengths"]["response"][1],
        epochs=workload["epochs"],
        minibatches=workload["updates"],
        seed=workload["seed"],
    )


def _iterate(
    flow: Dataflow, iterations: int, tell: Progress
) -> tuple[list[tuple[float, float]], list[dict[str, float]]]:
    """Start and end of the iterations that count, by the clock that all processes of a host share, and their means."""
    bounds, history = [], []
    for i in range(-WARM_UP, iterations):
        share = (i + WARM_UP + 1) / (WARM_UP + iterations + 1)
        tell(share, f"iteration {i + 1} of {iterations}" if i >= 0 else "warming up")
        wait(_on_all(flow, "begin", i))
        start = time.perf_counter()
        means = flow.iteration()
        if i >= 0:
            bounds.append((start, time.perf_counter()))
            history.append(means)
    return bounds, history


def _results(plan: Plan, flow: Dataflow, bounds: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """What each rank of the plan recorded of the plan's tasks; ranks that no pool works on recorded nothing."""
    found: list[dict[str, Any]] = [
        {"pieces": [], "peak_B": 0, "spent": {"wall_s": 0.0, "own_s": 0.0, "machine_s": None}}
        for _ in range(plan.n_ranks)
    ]
    recorded = iter(wait(_on_all(flow, "recorded")))
    for pool, decided in zip(_pools(flow), plan.decisions["pools"], strict=True):
        for rank in range(pool.size):
            found[decided["first_rank"] + rank] = next(recorded)
    for result in found:
        result["pieces"] = [piece for piece in result["pieces"] if piece[0] in plan.index]
        result |= {"bounds": bounds, "losses": []}
    return found


def _pools(flow: Dataflow) -> list[Pool]:
    """In the order of the plan."""
    return sorted(flow.pools, key=lambda pool: pool.name)


def _on_all(flow: Dataflow, method: str, *arguments: object) -> list[Call]:
    return [
        Call(pool, rank, getattr(worker, method).remote(*arguments))
        for pool in _pools(flow)
        for rank, worker in enumerate(pool.workers)
    ]


def _crowded(ranks: int) -> tuple[str, ...]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available() or ranks <= cores:
        return ()
    return (f"{ranks} ranks share {cores} cores: they wait for each other, which predictions know nothing of",)


def _of_workload(work: Mapping[str, Any], calls: Collection[str]) -> Iterator[Problem]:
    model, models = work["models"]["actor"], list(work["models"].values())
    lengths, algorithm = work.get("lengths"), work["algorithm"]
    scored = [role for role in ("reward", "cost") if role in work["models"]]
    engine = work["generation"]["engine"]
    rules = [
        ("algorithm", algorithm, algorithm in ALGORITHMS, ", ".join(ALGORITHMS)),
        ("models", f"{len({str(m) for m in models})} sizes", all(m == model for m in models), "one for all roles"),
        ("model", "no Llama", model["gated"] and model["norm"] == "rmsnorm", "a Llama: gated, rmsnorm"),
        ("model.learned_positions", "true", not model["learned_positions"], "false"),
        ("model.bias", "true", not model["bias"] and not model["qkv_bias"], "false"),
        ("model.tied_embeddings", "true", not model["tied_embeddings"], "false"),
        ("checked", f"not {', '.join(scored)}", not scored, "the roles that score, whose rewards are checks of a task"),
        ("recompute_log_prob", "false", LOG_PROB in calls, "true: rollouts keep none"),
        ("train_on_pretraining", "false", PRETRAIN_LOSS not in calls, "true: updates learn from pretraining text"),
        ("precision", work["precision"], work["precision"] == "float32", "float32"),
        ("generation.engine", engine, engine == PADDED, PADDED),
        ("prompt_len", str(lengths), lengths is None or _one(lengths["prompt"]), "one length"),
        ("response_len", str(lengths), lengths is None or _one(lengths["response"]), "one length"),
        ("offload", ", ".join(work["offload"]), not work["offload"], "nothing"),
    ]
    for field, given, holds, allowed in rules:
        if not holds:
            yield Problem(f"workload.{field}", given, allowed)


def _one(ends: list[int]) -> bool:
    return ends[0] == ends[1]


def _of_pool(pool: Mapping[str, Any], work: Mapping[str, Any]) -> Iterator[Problem]:
    at_once = work["generation"]["max_num_seqs"]
    if "generation" in pool and work["sequences"] > at_once * pool["generation"]["replicas"]:
        each = -(-work["sequences"] // pool["generation"]["replicas"])
        yield Problem("workload.generation.max_num_seqs", str(at_once), f"at least {each}, all that a replica answers")
    for role, strategy in pool["models"].items():
        split = strategy["parallelism"]
        if strategy.get("recompute", "none") != "none":
            yield Problem(f"{role}: planner.recompute", strategy["recompute"], "none", "Set `recompute: [none]`.")
        if strategy.get("zero", 0) and split["dp"] > 1:
            yield Problem(f"{role}: planner.zero", str(strategy["zero"]), "0", "Set `zero: 0`.")


def _of_job(plan: Plan) -> list[Problem]:
    """What the sizes of the batch do not divide into."""
    try:
        job = job_of(plan.workload)
        of_plan(plan.decisions, plan.workload.get("checked", ())).check(job)
    except InputError as error:
        return list(error.problems)
    return []
