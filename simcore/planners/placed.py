"""RLHF on a placement that is given: all models on one pool, actor apart from critic, every model by itself, or sets of your own.

Sizes of the pools, parallelism and generation are the best for that placement.
"""

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from simcore.cluster import Cluster
from simcore.errors import PlanError, Problem
from simcore.hybridflow.dataflow import Dataflow
from simcore.hybridflow.placements import Placement, named
from simcore.hybridflow.planner import Common, decide, rules_of
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.training.quick_parts import Prices
from simcore.workloads.rlhf import Rlhf


class Params(Common):
    """Which models share a pool."""

    placement: Literal["colocate", "split", "standalone"] | list[list[str]] = Field(
        "colocate",
        description="One pool; actor and reference apart from critic and reward; a pool for each; or sets of roles.",
    )


def plan(
    workload: object,
    cluster: Cluster,
    cost: Prices,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,  # noqa: ARG001 - the timeline is the simulation in closed form
    progress: Progress | None = None,
) -> Plan:
    """The plan. Raises as planner `hybridflow`, and `PlanError` for sets that are not those of the workload's roles."""
    placements = [_placement(params, workload.dataflow)] if isinstance(workload, Rlhf) else None
    rules = rules_of(params, engine="hybridflow")
    return decide("placed", workload, cluster, cost, rules, placements=placements, progress=progress)


def _placement(params: Params, dataflow: Dataflow) -> Placement:
    if isinstance(params.placement, str):
        return named(params.placement, dataflow.roles)
    given = [role for roles in params.placement for role in roles]
    if sorted(given) != sorted(dataflow.roles):
        problem = Problem("planner.placement", ", ".join(given), f"each of {', '.join(dataflow.roles)} once")
        raise PlanError("a placement of other roles", [problem])
    return tuple(tuple(roles) for roles in params.placement)
