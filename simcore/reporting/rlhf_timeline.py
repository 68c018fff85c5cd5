"""What a picture of an RLHF plan shows that one of training does not: which call computes, and which models a rank has."""

from collections.abc import Mapping, Sequence
from typing import Any

from simcore.engine.kinds import COMPUTE, class_of, part_of
from simcore.plan import Plan
from simcore.trace import Trace

COLOURS: Mapping[str, str] = {
    "generate": "#72b7b2",
    "log_prob": "#9ecae9",
    "ref_log_prob": "#9d755d",
    "values": "#b279a2",
    "reward": "#ff9da6",
    "cost": "#d67195",
    "update_actor": "#4c78a8",
    "update_critic": "#1b3a5c",
}
"""Of the calls of known algorithms."""


def pools_of(plan: Plan) -> Sequence[Mapping[str, Any]]:
    """The pools that a planner of RLHF decided on; none of other plans."""
    found: Sequence[Mapping[str, Any]] = plan.decisions.get("pools", ()) if "calls" in plan.decisions else ()
    return found


def parts(plan: Plan) -> list[str]:
    """As `simcore.engine.kinds.parts`, but what computes is named by its call."""
    calls = {str(call["name"]) for call in plan.decisions["calls"]}
    found = []
    for task in plan.tasks:
        call = task.id.partition("/")[0]
        found.append(call if class_of(task) == COMPUTE and call in calls else part_of(task))
    return found


def lanes(plan: Plan, trace: Trace) -> list[list[int]]:
    """Lanes of each pool, in its order."""
    found: list[list[int]] = []
    for pool in pools_of(plan):
        first, end = pool["first_rank"], pool["first_rank"] + pool["ranks"]
        found.append([i for i, lane in enumerate(trace.lanes) if first <= lane.ranks[0][0] < end])
    return found


def models(plan: Plan, trace: Trace) -> list[str]:
    """The models that each lane has: "actor, reference"."""
    found = [""] * len(trace.lanes)
    for pool, of_pool in zip(pools_of(plan), lanes(plan, trace), strict=True):
        for lane in of_pool:
            found[lane] = ", ".join(pool["models"])
    return found
