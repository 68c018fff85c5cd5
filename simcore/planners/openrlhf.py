"""OpenRLHF: every model on GPUs of its own, ZeRO 3 for training, and a second copy of the actor that generates with vLLM.

Hu et al. 2024. New weights go from the actor to the engines of generation over the network, layer by layer. Sizes of the pools
are the best ones, where its users choose them by hand.
"""

from collections.abc import Callable
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from simcore.cluster import Cluster
from simcore.hybridflow.dataflow import ROLLOUT, with_rollout
from simcore.hybridflow.model_costs import Limits
from simcore.hybridflow.placements import named
from simcore.hybridflow.planner import decide
from simcore.hybridflow.planning import Rules
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.training.quick_parts import Prices
from simcore.workloads.rlhf import Rlhf


class Params(BaseModel):
    """How training is sharded."""

    model_config = ConfigDict(extra="forbid")

    zero: int = Field(3, ge=1, le=3, description="ZeRO stage of training.")


def plan(
    workload: object,
    cluster: Cluster,
    cost: Prices,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,  # noqa: ARG001 - nothing to choose between
    progress: Progress | None = None,
) -> Plan:
    """The plan. Raises as planner `hybridflow`."""
    placements = None
    if isinstance(workload, Rlhf):
        generator = next(c.role for c in workload.dataflow.calls if c.kind == "generate")
        models = {**workload.models, ROLLOUT: workload.models[generator]}
        workload = replace(workload, dataflow=with_rollout(workload.dataflow), models=models)
        placements = [named("standalone", workload.dataflow.roles)]
    rules = Rules(
        engine="hybridflow", limits=Limits(zero=params.zero, tp=1, pp=1), own_limits={ROLLOUT: Limits(zero=0)}
    )
    return decide("openrlhf", workload, cluster, cost, rules, placements=placements, progress=progress)
