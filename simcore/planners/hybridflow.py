"""HybridFlow: the fastest placement of all, with the best parallelism for each model and for generation.

Sheng et al., EuroSys 2025, algorithms 1 and 2. All set partitions of the models, all sizes of pools, (p, t, d) of each model and
(p_g, t_g) of generation. Beyond the paper: the cost is a timeline without barriers, with transitions and transfers between pools;
generation has a KV cache that limits how many sequences it takes at a time; clusters may have several kinds of devices.
"""

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from simcore.cluster import Cluster
from simcore.hybridflow.planner import Common, decide, rules_of
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.training.quick_parts import Prices


class Params(Common):
    """What the search may choose from."""

    mode: Literal["pruned", "exhaustive"] = Field(
        "pruned", description="Branch and bound, or every placement; both have the same answer."
    )
    engine: Literal["hybridflow", "hybridflow_v", "ds_chat"] = Field(
        "hybridflow", description="How the actor is resharded (the paper's table 2)."
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
    """The plan. Raises `DoesNotFit` with the smallest change that would make it fit, `PlanError` where nothing divides."""
    return decide(
        "hybridflow",
        workload,
        cluster,
        cost,
        rules_of(params, engine=params.engine),
        mode=params.mode,
        progress=progress,
    )
