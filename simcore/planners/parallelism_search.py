"""Every feasible parallelism, pruned by memory, ranked in closed form; the best are simulated, and the fastest is the plan."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from simcore.backend import Progress
from simcore.cluster import Cluster
from simcore.errors import DoesNotFit, PlanError, Problem
from simcore.parallelism import Parallelism, problems_of
from simcore.placement import Costs
from simcore.plan import Plan
from simcore.quick import Quick
from simcore.training_plan import training_plan
from simcore.workloads.transformer_training import Workload

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


class Params(BaseModel):
    """What may be chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    most_tp: int = Field(8, ge=1, le=4096, description="Most tensor-parallel ranks; beyond a host they are slow.")
    most_cp: int = Field(8, ge=1, le=4096, description="Most context-parallel ranks.")
    microbatches: list[int] = Field(
        [1, 2, 4, 8], min_length=1, max_length=32, description="Sizes of a microbatch, in sequences."
    )
    vpp: list[int] = Field([1, 2, 4], min_length=1, max_length=32, description="Chunks on a pipeline stage.")
    zero: list[Literal[0, 1, 2, 3]] = Field([0, 1, 2, 3], min_length=1, description="ZeRO stages.")
    recompute: list[Recompute] = Field(list(RECOMPUTE), min_length=1, description="Recompute modes.")
    simulate: int = Field(10, ge=1, le=1000, description="How many of the best are simulated.")


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    return (
        [d for d in range(1, n + 1) if n % d == 0]
        if n < 10_000
        else [2**i for i in range(n.bit_length()) if n % 2**i == 0]
    )


def candidates(workload: Workload, n_ranks: int, params: Params) -> Iterator[Parallelism]:
    """Every parallelism that `problems_of` has nothing against. Sequence parallelism comes with tensor parallelism."""
    shape = workload.shape
    for tp in (d for d in divisors(n_ranks) if d <= params.most_tp and shape.heads % d == 0):
        for cp in (d for d in divisors(n_ranks // tp) if d <= params.most_cp):
            for pp in (d for d in divisors(n_ranks // tp // cp) if d <= shape.layers):
                dp = n_ranks // (tp * cp * pp)
                for choice in product(params.microbatches, params.vpp, params.zero, params.recompute):
                    microbatch, vpp, zero, recompute = choice
                    if (vpp > 1 and pp == 1) or (zero and dp * cp == 1) or workload.global_batch % (dp * microbatch):
                        continue
                    p = Parallelism(
                        dp=dp,
                        tp=tp,
                        pp=pp,
                        cp=cp,
                        vpp=vpp,
                        microbatch=microbatch,
                        zero=zero,
                        recompute=recompute,
                        sequence_parallel=tp > 1,
                    )
                    if not problems_of(p, workload, n_ranks):
                        yield p


def plan(
    workload: Workload,
    cluster: Cluster,
    cost: Costs,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The fastest plan; `decisions["search"]` says how many were considered and what the runners-up take.

    Raises `PlanError` where no parallelism divides the work, `DoesNotFit` with the nearest miss where none fits.
    """
    quick = Quick(workload, cluster, cost)
    considered = list(candidates(workload, cluster.n_ranks, params))
    if not considered:
        allowed = "sizes that divide the heads, layers, sequences and ranks in some way"
        raise PlanError("no parallelism is possible", [Problem("planner", "parallelism_search", allowed)])
    if progress:
        progress(0.1, f"{len(considered)} parallelisms")
    fitting = [p for p in considered if quick.fits(p)]
    if not fitting:
        raise _nearest_miss(quick, considered)
    ranked = sorted(fitting, key=lambda p: (quick.seconds(p), *_order(p)))[: params.simulate]
    tries = (_try(p, quick, workload, cluster, evaluate) for p in _with_progress(ranked, progress))
    tried = [row for row in tries if row is not None]
    if not tried:
        raise _nearest_miss(quick, considered)
    tried.sort(key=lambda row: row[0])
    search = {
        "considered": len(considered),
        "fit_memory": len(fitting),
        "simulated": len(tried) if evaluate else 0,
        "best": [{**_named(p), "seconds": seconds, "closed_form_s": quick.seconds(p)} for seconds, p, _ in tried],
    }
    chosen = tried[0][2]
    return Plan(**{**_fields(chosen), "decisions": {**chosen.decisions, "search": search}})


Tried = tuple[float, Parallelism, Plan]


def _try(
    p: Parallelism, quick: Quick, workload: Workload, cluster: Cluster, evaluate: Callable[[Plan], float] | None
) -> Tried | None:
    """Its seconds, simulated if that is possible; None where the simulator finds that memory does not suffice after all."""
    made = training_plan(workload, cluster, p)
    try:
        return (evaluate(made) if evaluate else quick.seconds(p), p, made)
    except DoesNotFit:
        return None


def _with_progress(ranked: list[Parallelism], progress: Progress | None) -> Iterator[Parallelism]:
    for i, p in enumerate(ranked):
        if progress:
            progress(0.2 + 0.8 * i / len(ranked), f"simulating {i + 1} of {len(ranked)}")
        yield p


def _nearest_miss(quick: Quick, considered: list[Parallelism]) -> DoesNotFit:
    p = min(considered, key=quick.memory_B)
    given = ", ".join(f"{k} {v}" for k, v in _named(p).items())
    most = min(d.memory_B for d in quick.cluster.devices)
    problem = Problem(
        "planner",
        f"{quick.memory_B(p) / 1e9:.1f} GB at the least ({given})",
        f"{most / 1e9:.1f} GB",
        "Take more or larger devices.",
    )
    return DoesNotFit(f"none of {len(considered)} parallelisms fits the devices", [problem])


def _order(p: Parallelism) -> tuple[object, ...]:
    """Ties go to the simpler plan."""
    return (p.zero, RECOMPUTE.index(p.recompute), p.pp, p.vpp, p.tp, p.cp, p.microbatch)


def _named(p: Parallelism) -> dict[str, Any]:
    return {name: getattr(p, name) for name in ("dp", "tp", "pp", "cp", "vpp", "microbatch", "zero", "recompute")}


def _fields(made: Plan) -> dict[str, Any]:
    names = ("name", "n_ranks", "groups", "tasks", "decisions", "workload", "memory_B")
    return {name: getattr(made, name) for name in names}
