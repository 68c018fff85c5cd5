"""Which precision each operator of an accuracy run gets: uniform, from QSync's planner, or at random."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from costmodels.catalog import device
from costmodels.operator_graph import OperatorGraph
from costmodels.precision import allowed, of_device
from real.precision.accuracy_tasks import Task, model_of
from real.precision.digits import Split
from real.precision.statistics import ITERATIONS, collect
from real.precision.tracing import trace
from simcore import api
from simcore.plan import Plan
from simcore.qsync.statistics import Statistics

PLANNED = "t4"
"""The class of devices that the planner chooses for; the V100 beside it computes in float32."""

WIDE = "float32"
"""What operators get that a random choice keeps out of int8, and those without int8 in a uniform one."""

VARIANTS = ("float32", "float16", "int8", "qsync", "random")
"""Uniform precisions; QSync's plan; at random, with as many operators in int8 as QSync's plan has."""

SCENARIO = """\
name: accuracy
cluster:
  topology: fat_tree
  pools:
    - {{device: v100_sxm2_16, nodes: 1, devices_per_node: 1, intra: nvlink2, inter: ethernet_100g}}
    - {{device: {planned}, nodes: 1, devices_per_node: 1, intra: pcie3, inter: ethernet_100g}}
workload: {{name: operator_training, model: graph.json, statistics: ./statistics.json, batch: {batch}, optimizer: adamw}}
planner: {{name: qsync, keep: [], rounding: {rounding}, tolerance: {tolerance}}}
"""
"""`keep: []`: no operator is kept in float32 by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Precisions of every adjustable operator by variant, for one task and seed; and facts about the plan, as JSON holds them."""

    task: str
    seed: int
    has: tuple[str, ...]
    precision: Mapping[str, Mapping[str, str]]
    plan: Mapping[str, Any]


def choices(task: Task, seed: int, split: Split) -> Choices:
    """All variants. The plan's statistics are of the first batches in float32, with the weights that training starts from."""
    graph, found = statistics_of(task, seed, split)
    plan, facts = planned(task, graph, found)
    chosen: dict[str, str] = plan.decisions["precision"][PLANNED]
    has = of_device(device(PLANNED))
    uniform = {p: _uniform(graph, has, p) for p in VARIANTS[:3]}
    count = list(chosen.values()).count("int8")
    precision = {**uniform, "qsync": chosen, "random": at_random(graph, has, count, seed)}
    return Choices(task=task.name, seed=seed, has=has, precision=precision, plan=facts)


def statistics_of(task: Task, seed: int, split: Split) -> tuple[OperatorGraph, Statistics]:
    """The task's graph, and statistics of its first batches at the start."""
    torch.manual_seed(seed)
    model = model_of(task, split)
    graph = trace(model)
    model.module.train()
    source = f"the first {ITERATIONS} batches of {task.name}, seed {seed}, weights as initialised"
    return graph, collect(model, graph, _batches(task, split), source=source)


def _batches(task: Task, split: Split) -> Iterator[tuple[tuple[torch.Tensor], torch.Tensor]]:
    for first in range(0, ITERATIONS * task.batch, task.batch):
        rows = slice(first, first + task.batch)
        yield (split.inputs[rows],), split.classes[rows]


def planned(task: Task, graph: OperatorGraph, found: Statistics) -> tuple[Plan, dict[str, Any]]:
    """QSync's plan under the task's limits, and what it says of itself.

    A first plan without a limit of memory tells what uniform precisions need, from which the limit follows.
    """
    with TemporaryDirectory() as folder:
        here = Path(folder)
        graph.save(here / "graph.json")
        found.save(here / "statistics.json")
        text = SCENARIO.format(planned=PLANNED, batch=task.batch, rounding=task.rounding, tolerance=task.tolerance)
        (here / "scenario.yaml").write_text(text)
        free = api.plan(here / "scenario.yaml", ["planner.exact=never"]).decisions["predicted"]["uniform"]
        needs = {p: free[p]["memory_B"][PLANNED] for p in ("int8", "float16", "float32")}
        limit_B = int(needs["int8"] + task.spare * (needs["float16"] - needs["int8"]))
        plan = api.plan(here / "scenario.yaml", [f"planner.memory.{PLANNED}={limit_B} B"])
    predicted = plan.decisions["predicted"]
    facts = {
        "scenario": text,
        "statistics": found.source,
        "memory_limit_B": limit_B,
        "memory_B": predicted["memory_B"][PLANNED],
        "uniform_memory_B": needs,
        "iteration_s": predicted["iteration_s"],
        "uniform_iteration_s": {p: predicted["uniform"][p]["iteration_s"] for p in needs},
        "variance": predicted["variance"],
        "uniform_variance": {p: predicted["uniform"][p]["variance"] for p in needs},
        "counts": plan.decisions["counts"][PLANNED],
    }
    return plan, facts


def _uniform(graph: OperatorGraph, has: tuple[str, ...], precision: str) -> dict[str, str]:
    fits = {o.name: allowed(o, has) for o in graph if allowed(o, has)}
    return {name: precision if precision in of else WIDE for name, of in fits.items()}


def at_random(graph: OperatorGraph, has: tuple[str, ...], count: int, seed: int) -> dict[str, str]:
    """`count` of the operators that can be int8 are, drawn from the seed; all others compute in float32."""
    narrow = [o.name for o in graph if "int8" in allowed(o, has)]
    drawn = {narrow[i] for i in np.random.default_rng(seed).permutation(len(narrow))[:count]}
    return {o.name: "int8" if o.name in drawn else WIDE for o in graph if allowed(o, has)}
