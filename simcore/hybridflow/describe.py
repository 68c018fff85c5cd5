"""What people ask of an RLHF plan: which model is on which GPU in which stage, what fills each GPU, and why pools are idle.

Everything is read from the plan's decisions; times are those of the planner's closed form. What a run does is in its report.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodels import memory
from costmodels.catalog import Catalog
from costmodels.specs import DeviceSpec
from simcore.errors import PlanError, Problem
from simcore.plan import Plan

NOISE_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A model on the GPUs of a pool."""

    pool: str
    device: str
    first_rank: int
    last_rank: int
    role: str
    parallelism: str
    memory_B: Mapping[str, float]
    """By kind, on the fullest rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A call on a pool."""

    stage: str
    call: str
    role: str
    pool: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What a rank of a pool holds at its fullest, by kind, in training and in generation, and what its device has."""

    pool: str
    when: str
    memory_B: Mapping[str, float]
    capacity_B: float

    @property
    def margin_B(self) -> float:
        return self.capacity_B - sum(self.memory_B.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """All of it; `idle_s` is by pool and cause."""

    plan: str
    iteration_s: float
    tokens_per_s: float
    stays: tuple[Stay, ...]
    turns: tuple[Turn, ...]
    fills: tuple[Fill, ...]
    idle_s: Mapping[str, Mapping[str, float]]


def describe(plan: Plan, known: Catalog | None = None) -> Description:
    """Raises `PlanError` for a plan that no planner of RLHF made.

    `known` has the plan's devices; by default they are the catalogue's and those measured in the folder `calibration`.
    """
    known = known or Catalog([Path("calibration")])
    decisions = plan.decisions
    if "pools" not in decisions or "calls" not in decisions:
        made = str(decisions.get("system", plan.name))
        problem = Problem("plan", made, "a plan of RLHF", "`windtunnel plan` shows what any planner decides.")
        raise PlanError("only plans of RLHF can be described", [problem])
    pools, calls = decisions["pools"], decisions["calls"]
    iteration_s = float(decisions["predicted"]["iteration_s"])
    return Description(
        plan=plan.name,
        iteration_s=iteration_s,
        tokens_per_s=plan.workload["tokens_per_iteration"] / iteration_s,
        stays=tuple(stay for pool in pools for stay in _stays(pool)),
        turns=tuple(_turn(c) for c in calls if c["pool"]),
        fills=tuple(fill for pool in pools for fill in _fills(pool, known.device(pool["device"]))),
        idle_s={pool["name"]: _idle(pool["name"], calls, iteration_s) for pool in pools},
    )


def _stays(pool: Mapping[str, Any]) -> list[Stay]:
    found = []
    generation = pool.get("generation")
    for role, model in pool["models"].items():
        degrees = model["parallelism"]
        text = f"p {degrees['pp']} t {degrees['tp']} d {degrees['dp']}"
        if generation and generation["role"] == role:
            text += f", generates p {generation['pp']} t {generation['tp']} x {generation['replicas']}"
        found.append(
            Stay(
                pool=pool["name"],
                device=pool["device"],
                first_rank=pool["first_rank"],
                last_rank=pool["first_rank"] + pool["working"] - 1,
                role=role,
                parallelism=text + (", offloaded" if model["offloaded"] else ""),
                memory_B={kind: size for kind, size in model["states_B"].items() if size},
            )
        )
    return found


def _turn(call: Mapping[str, Any]) -> Turn:
    return Turn(
        stage=call["stage"],
        call=call["name"],
        role=call["role"],
        pool=call["pool"],
        start_s=call["start_s"],
        end_s=call["end_s"],
    )


def _fills(pool: Mapping[str, Any], device: DeviceSpec) -> list[Fill]:
    """At the call that needs most beside what stays, and while generating."""
    stays = {"overhead": memory.OVERHEAD_B} if device.kind == "gpu" else {}
    for model in pool["models"].values():
        for kind, size in model["states_B"].items() if not model["offloaded"] else ():
            stays[kind] = stays.get(kind, 0.0) + size
    working = max(m["working_B"] + (_all(m) if m["offloaded"] else 0.0) for m in pool["models"].values())
    found = [Fill(pool=pool["name"], when="computing", memory_B={**stays, "work": working}, capacity_B=device.memory_B)]
    generation = pool.get("generation")
    if generation:
        held = {"generation weights": generation["extra_weights_B"], "KV cache": generation["cache_B"]}
        found.append(Fill(pool=pool["name"], when="generating", memory_B={**stays, **held}, capacity_B=device.memory_B))
    return found


def _all(model: Mapping[str, Any]) -> float:
    return float(sum(model["states_B"].values()))


def _idle(pool: str, calls: list[Mapping[str, Any]], iteration_s: float) -> dict[str, float]:
    """Seconds in which a pool does nothing, by what it waits for."""
    by_name = {c["name"]: c for c in calls}
    found: dict[str, float] = {}
    free = 0.0
    for call in [c for c in calls if c["pool"] == pool]:
        if call["start_s"] - free > NOISE_S:
            cause = f"waits for {_last_input(call, by_name)}"
            found[cause] = found.get(cause, 0.0) + call["start_s"] - free
        free = call["end_s"]
    if iteration_s - free > NOISE_S:
        found["waits for the end of the iteration"] = iteration_s - free
    return found


def _last_input(call: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]) -> str:
    """The input that comes last; of numbers that no model computes, what they wait for."""
    last = max((by_name[a] for a in call["after"]), key=lambda c: float(c["end_s"]))
    return str(last["name"]) if last["pool"] else _last_input(last, by_name)
