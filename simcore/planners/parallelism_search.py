"""Every feasible parallelism, pruned by memory, ranked in closed form; the best are simulated, and the fastest is the plan.

Some others, spread over the ranking, are simulated too: `decisions["search"]["agreement"]` says how well the closed form ranks
(Spearman's correlation) and how far off it is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from simcore.checks import shortfalls
from simcore.cluster import Cluster
from simcore.errors import DoesNotFit, PlanError, Problem
from simcore.plan import Plan
from simcore.planners import fixed
from simcore.progress import Progress
from simcore.training.choice import Choice
from simcore.training.configurations import Configurations, Limits, enumerate_all
from simcore.training.plans import training_plan
from simcore.training.quick import Quick
from simcore.training.quick_parts import Parts, Prices
from simcore.workloads.transformer_training import TransformerTraining

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Recompute = Literal["none", "selective", "full"]
TRIES = 5  # times as many plans are built as are wanted, where memory turns out to be short after all
MOST_SAMPLED_PASSES = 20_000  # of a plan that is simulated only to be compared


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
    sample: int = Field(
        10, ge=0, le=1000, description="How many others are simulated, to compare the closed form with the simulator."
    )


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
    cost: Prices,
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
    seconds = quick.seconds(fitting)
    ranking = np.lexsort((np.arange(len(fitting)), seconds))
    simulating = _Simulating(quick, fitting, seconds, cluster, evaluate, progress)
    found = list(simulating.candidates(ranking[: params.simulate * TRIES].tolist(), params.simulate))
    if not found:
        raise _nearest_miss(table, needed, cluster)
    others = list(simulating.candidates(_spread(quick, fitting, ranking, params), params.sample)) if evaluate else []
    best = min([*found, *others], key=lambda c: c.seconds)
    found.sort(key=lambda c: c.seconds)
    search = {
        "considered": len(table),
        "pruned": len(table) - len(fitting),
        "simulated": len(found) if evaluate else 0,
        "best": [c.described() for c in found],
        "sampled": [c.described() for c in others],
    }
    if evaluate:
        search["agreement"] = agreement([*found, *others])
    decisions = {**best.plan.decisions, "search": search}
    if evaluate:
        decisions["closed_form"] = search["agreement"]
    return replace(best.plan, decisions=decisions)


def agreement(candidates: Sequence[Candidate]) -> dict[str, float | int]:
    """How well the closed form ranks simulated configurations (Spearman's correlation; 1 where there is but one time), and the
    median of how far off it is."""
    estimates = np.array([c.estimate_s for c in candidates])
    simulated = np.array([c.seconds for c in candidates])
    mine, theirs = (_ranks(times) for times in (estimates, simulated))
    same = np.ptp(mine) == 0 or np.ptp(theirs) == 0
    return {
        "compared": len(candidates),
        "rank_correlation": 1.0 if same else round(_correlation(mine, theirs), 4),
        "median_error": round(float(np.median(np.abs(estimates / simulated - 1))), 4),
    }


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _ranks(values: Floats) -> Floats:
    """Places in ascending order; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return np.asarray((ends - (count - 1) / 2)[place.reshape(-1)], dtype=np.float64)


def _spread(quick: Quick, table: Configurations, ranking: Ints, params: Params) -> list[int]:
    """Rows beyond those that are simulated anyway, evenly spread over the ranking, with plans that are not too long."""
    rest = ranking[params.simulate * TRIES :]
    batch, layers = quick.parts.workload.global_batch, quick.parts.workload.model.layers
    passes = 2 * batch // (table.dp * table.microbatch) * np.where(table.zero == 3, layers, table.pp * table.vpp)
    rest = rest[passes[rest] <= MOST_SAMPLED_PASSES]
    if not len(rest) or not params.sample:
        return []
    places = np.linspace(0, len(rest) - 1, min(2 * params.sample, len(rest))).astype(np.int64)
    chosen = rest[places].tolist()
    return [*chosen[::2], *chosen[1::2]]


def _limits(params: Params) -> Limits:
    return Limits(**params.model_dump(exclude={"overlap", "simulate", "sample"}))


def _choice(row: dict[str, int | str], workload: TransformerTraining, cluster: Cluster, params: Params) -> Choice:
    given = fixed.Params.model_validate({**row, "overlap": params.overlap, "detail": "chunk"})
    return fixed.choice_of(given, workload, cluster.n_ranks)


@dataclass(frozen=True)
class _Simulating:
    """Turns rows of a table into plans, and simulates them."""

    quick: Quick
    table: Configurations
    estimates_s: Floats
    cluster: Cluster
    evaluate: Callable[[Plan], float] | None
    progress: Progress | None

    def candidates(self, rows: Sequence[int], wanted: int) -> Iterator[Candidate]:
        """The first `wanted` that fit; those that the plan's own account of memory refuses are passed over."""
        found = 0
        for i in rows:
            if found == wanted:
                return
            made = training_plan(self.quick.parts.workload, self.quick.choose(self.table, i), self.cluster)
            if shortfalls(made, self.cluster):
                continue
            if self.progress is not None:
                self.progress(found / wanted, f"simulating {found + 1} of {wanted} of {len(self.table)} configurations")
            estimate = float(self.estimates_s[i])
            seconds = self.evaluate(made) if self.evaluate else estimate
            yield Candidate(self.table.row(i), made, estimate, seconds)
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
