"""Every feasible parallelism, pruned by memory, ranked in closed form; the best are simulated, and the fastest is the plan."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from simcore.backend import Progress
from simcore.checks import shortfalls
from simcore.cluster import Cluster
from simcore.configurations import Configurations, Limits, enumerate_all
from simcore.errors import DoesNotFit, PlanError, Problem
from simcore.placement import Costs
from simcore.plan import Plan
from simcore.planners import fixed
from simcore.quick import Quick
from simcore.quick_parts import Parts
from simcore.training import Choice
from simcore.training_plan import training_plan
from simcore.workloads.transformer_training import TransformerTraining

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Recompute = Literal["none", "selective", "full"]
TRIES = 5  # times as many plans are built as are wanted, where memory turns out to be short after all


class Params(BaseModel):
    """What the search may choose from, and how much of it is simulated."""

    model_config = ConfigDict(extra="forbid")

    max_tp: int = Field(64, ge=1, le=4096, description="Most tensor parallel ranks.")
    max_cp: int = Field(64, ge=1, le=4096, description="Most context parallel ranks.")
    max_vpp: int = Field(8, ge=1, le=1024, description="Most chunks on a pipeline stage.")
    max_microbatch: int = Field(16, ge=1, le=65_536, description="Most sequences that a replica computes at a time.")
    recompute: list[Recompute] = Field(["none", "selective", "full"], min_length=1, description="Ways to recompute.")
    zero: list[Literal[0, 1, 2, 3]] = Field([0, 1, 2, 3], min_length=1, description="ZeRO stages.")
    overlap: bool = Field(True, description="Communicate while computing where the dependencies allow it.")
    simulate: int = Field(10, ge=1, le=1000, description="How many of the best in closed form are simulated.")


@dataclass(frozen=True)
class Candidate:
    """A configuration that fits, with its plan and both estimates; without a simulator they are the same."""

    row: dict[str, int | str]
    plan: Plan
    estimate_s: float
    seconds: float

    def described(self) -> dict[str, Any]:
        return {**self.row, "estimate_s": self.estimate_s, "seconds": self.seconds}


def plan(
    workload: object,
    cluster: Cluster,
    cost: Costs,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The fastest plan; `decisions["search"]` says how many were considered and how the best compare.

    `evaluate` simulates a plan and returns its seconds; without it the closed form decides. Raises `PlanError` where nothing
    divides the work, `DoesNotFit` with the nearest miss where nothing fits.
    """
    if not isinstance(workload, TransformerTraining):
        raise fixed.other_workload("parallelism_search")

    def choose(table: Configurations, row: int) -> Choice:
        return _choice(table.row(row), workload, cluster, params)

    quick = Quick(Parts(workload, cluster, cost), choose)
    table = enumerate_all(workload, cluster.n_ranks, _limits(params))
    if not len(table):
        raise _nothing_divides(workload, cluster)
    needed = quick.memory_B(table)
    fitting = table[needed <= _least_memory_B(cluster)]
    if not len(fitting):
        raise _nearest_miss(table, needed, cluster)
    found = list(_candidates(quick, fitting, cluster, params.simulate, evaluate, progress))
    if not found:
        raise _nearest_miss(table, needed, cluster)
    found.sort(key=lambda c: c.seconds)
    search = {
        "considered": len(table),
        "pruned": len(table) - len(fitting),
        "simulated": len(found) if evaluate else 0,
        "best": [c.described() for c in found],
    }
    best = found[0].plan
    return replace(best, decisions={**best.decisions, "search": search})


def _limits(params: Params) -> Limits:
    return Limits(**params.model_dump(exclude={"overlap", "simulate"}))


def _choice(row: dict[str, int | str], workload: TransformerTraining, cluster: Cluster, params: Params) -> Choice:
    given = fixed.Params.model_validate({**row, "overlap": params.overlap, "detail": "chunk"})
    return fixed.choice_of(given, workload, cluster.n_ranks)


def _candidates(
    quick: Quick,
    table: Configurations,
    cluster: Cluster,
    wanted: int,
    evaluate: Callable[[Plan], float] | None,
    progress: Progress | None,
) -> Iterator[Candidate]:
    """The best in closed form, as plans; those that the plan's own account of memory refuses are passed over."""
    seconds = quick.seconds(table)
    ranking = np.lexsort((np.arange(len(table)), seconds))[: wanted * TRIES]
    found = 0
    for i in ranking.tolist():
        if found == wanted:
            return
        made = training_plan(quick.parts.workload, quick.choose(table, i), cluster)
        if shortfalls(made, cluster):
            continue
        if progress is not None:
            progress(found / wanted, f"simulating {found + 1} of the best {wanted} of {len(table)} configurations")
        estimate = float(seconds[i])
        yield Candidate(table.row(i), made, estimate, evaluate(made) if evaluate else estimate)
        found += 1


def _least_memory_B(cluster: Cluster) -> float:
    return min(device.memory_B for device in cluster.devices)


def _nothing_divides(workload: TransformerTraining, cluster: Cluster) -> PlanError:
    problem = Problem(
        "planner",
        f"{cluster.n_ranks} ranks, {workload.model.layers} layers, {workload.global_batch} sequences",
        "numbers with common divisors",
        "Change workload.global_batch or the number of ranks, or allow more in the planner.",
    )
    return PlanError("no parallelism divides the work over the cluster", [problem])


def _nearest_miss(table: Configurations, needed: Floats, cluster: Cluster) -> DoesNotFit:
    """The configuration that lacks least."""
    i = int(needed.argmin())
    most = _least_memory_B(cluster)
    named = ", ".join(f"{name} {value}" for name, value in table.row(i).items())
    problem = Problem(
        "planner",
        f"{needed[i] / 1e9:.2f} GB with {named}",
        f"{most / 1e9:.2f} GB, the smallest device",
        f"{max(needed[i] - most, 0.0) / 1e9:.2f} GB are lacking in the nearest miss: use more or larger devices.",
    )
    return DoesNotFit(f"none of {len(table)} configurations fits the memory", [problem])
