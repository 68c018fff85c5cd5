"""What planners of RLHF share: their parameters, the search, and the plan with its decisions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from simcore.cluster import Cluster
from simcore.errors import DoesNotFit, PlanError, Problem
from simcore.hybridflow import layout
from simcore.hybridflow.model_costs import SHALLOW, Limits, Strategy
from simcore.hybridflow.placements import Placement
from simcore.hybridflow.planning import Planning, Rules
from simcore.hybridflow.plans import rlhf_plan
from simcore.hybridflow.resharding import Engine
from simcore.hybridflow.search import Counts, Decision, Mode
from simcore.hybridflow.timeline import Timeline
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.training.quick_parts import Prices
from simcore.workloads.rlhf import Rlhf


class Common(BaseModel):
    """What every planner of RLHF takes."""

    model_config = ConfigDict(extra="forbid")

    granularity: Literal["host", "gpu"] = Field(
        "host", description="Sizes of pools: parts of a host that divide it and whole hosts, or any number of GPUs."
    )
    recompute: list[Literal["none", "selective", "full"]] = Field(
        ["none", "selective", "full"], min_length=1, description="Ways to recompute activations in training."
    )
    zero: Literal[0, 1, 2, 3] = Field(1, description="ZeRO stage of training where there are replicas.")
    detail: Literal["chunk", "layer"] = Field(
        "chunk",
        description="chunk: modules and overlap of Megatron-LM; layer: modules of Hugging Face, which is what runs for real.",
    )
    tp: int | None = Field(None, ge=1, description="Tensor parallel ranks of every model; default: the best.")
    pp: int | None = Field(None, ge=1, description="Pipeline stages of every model; default: the best.")
    max_pp: int = Field(
        SHALLOW,
        ge=1,
        le=1024,
        description="Deepest pipeline, where `pp` is not given; twice as deep where nothing fits.",
    )


def rules_of(params: Common, *, engine: Engine, same_degrees: bool = False) -> Rules:
    """The parameters as rules of the search."""
    limits = Limits(
        zero=params.zero,
        recompute=tuple(params.recompute),
        tp=params.tp,
        pp=params.pp,
        max_pp=params.max_pp,
        detail=params.detail,
    )
    return Rules(engine=engine, same_degrees=same_degrees, limits=limits, granularity=params.granularity)


def decide(
    system: str,
    workload: object,
    cluster: Cluster,
    cost: Prices,
    rules: Rules,
    *,
    mode: Mode = "pruned",
    placements: Sequence[Placement] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan of the fastest placement of some, by default of all."""
    if not isinstance(workload, Rlhf):
        problem = Problem("planner.name", system, "a planner for this workload", f"{system} plans rlhf.")
        raise PlanError("a planner for another workload", [problem])
    planning, decision, counts = _search(workload, cluster, cost, rules, mode, placements)
    if progress is not None:
        progress(0.9, f"{counts.complete} placements compared")
    pools = layout.placed(decision)
    decisions = {
        "system": system,
        "engine": rules.engine,
        **({"detail": rules.limits.detail} if rules.limits.detail != "chunk" else {}),
        "max_pp": planning.rules.limits.max_pp,
        "ranks_per_node": min(zone.per_node for zone in planning.zones),
        "pools": [_pool(planning, pool) for pool in pools],
        "calls": _calls(workload, pools, planning.timeline(decision)),
        "predicted": {"iteration_s": decision.seconds, "transfer_s": planning.transfer_s()},
        "search": {
            "mode": mode,
            "placements": counts.placements,
            "compared": counts.complete,
            "pruned": counts.pruned,
        },
    }
    return rlhf_plan(f"{system} {workload.dataflow.name}", planning, decision, cluster, decisions)


def _search(
    workload: Rlhf,
    cluster: Cluster,
    cost: Prices,
    rules: Rules,
    mode: Mode,
    placements: Sequence[Placement] | None,
) -> tuple[Planning, Decision, Counts]:
    """With pipelines as shallow as the rules say; where nothing fits, with deeper ones. Where none do, raises the refusal of the
    deepest, which lacks least."""
    while True:
        planning = Planning(workload, cluster, cost, rules)
        try:
            return planning, *planning.search(mode, placements)
        except DoesNotFit as error:
            refusal = error
        deeper = 2 * rules.limits.max_pp
        if rules.limits.pp is not None or deeper > cluster.n_ranks:
            raise refusal
        rules = replace(rules, limits=replace(rules.limits, max_pp=deeper))


def _pool(planning: Planning, pool: layout.Pool) -> dict[str, Any]:
    choice = pool.choice
    found: dict[str, Any] = {
        "name": pool.name,
        "device": choice.zone.device.name,
        "first_rank": pool.first,
        "ranks": pool.size,
        "working": choice.n,
        "models": {role: _strategy(planning, pool, role, s) for role, s in choice.strategies.items()},
    }
    if choice.generating is not None:
        g = choice.generating
        found["generation"] = {
            "role": g.role,
            "tp": g.degrees.tp,
            "pp": g.degrees.pp,
            "replicas": choice.n // (g.degrees.tp * g.degrees.pp),
            "engine": planning.workload.generation.engine,
            "cache_B": g.cache_B,
            "extra_weights_B": g.weights_B,
            "concurrent": g.found.concurrent,
            "reads_of_a_prompt": g.found.reads,
            "seconds": g.found.seconds,
            "transition_s": g.transition_s,
        }
    return found


def _strategy(planning: Planning, pool: layout.Pool, role: str, s: Strategy) -> dict[str, Any]:
    costs = planning.costs_of(pool.choice.zone, role)
    found: dict[str, Any] = {
        "parallelism": {"dp": s.dp, "tp": s.tp, "pp": s.pp},
        "forward_microbatch": s.forward_microbatch,
        "states_B": costs.states(s.choice),
        "working_B": s.working_B,
        "offloaded": role in planning.workload.offload,
    }
    if planning.workload.dataflow.trains(role):
        found |= {"zero": s.choice.zero, "microbatch": s.choice.microbatch, "recompute": s.choice.recompute}
    return found


def _calls(workload: Rlhf, pools: Sequence[layout.Pool], when: Timeline) -> list[dict[str, Any]]:
    of = layout.pool_of(pools)
    return [
        {
            "name": c.name,
            "kind": c.kind,
            "role": c.role,
            "stage": c.stage,
            "after": list(c.after),
            "pool": of[c.role].name if c.role else "",
            "start_s": when.start_s[c.name],
            "end_s": when.end_s[c.name],
        }
        for c in workload.dataflow.calls
    ]
