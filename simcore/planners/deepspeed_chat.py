"""DeepSpeed-Chat: all models on all GPUs, ZeRO 3 for training, tensor parallelism for generation (Yao et al. 2023).

Its hybrid engine gathers the actor's parameters over all GPUs, layer by layer.
"""

from collections.abc import Callable
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from simcore.cluster import Cluster
from simcore.hybridflow.model_costs import Limits
from simcore.hybridflow.placements import named
from simcore.hybridflow.planner import decide
from simcore.hybridflow.planning import Rules
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.training.quick_parts import Prices
from simcore.workloads.rlhf import Rlhf


class Params(BaseModel):
    """What generates."""

    model_config = ConfigDict(extra="forbid")

    engine: str = Field("deepspeed", description="Kernels of generation; one that was not measured is a typical one.")
    batch: int = Field(16, ge=1, description="Sequences of a replica at a time; batches are static (assumption: 16).")


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
        placements = [named("colocate", workload.dataflow.roles)]
        generation = workload.generation.model_copy(update={"engine": params.engine, "max_num_seqs": params.batch})
        workload = replace(workload, generation=generation)
    rules = Rules(engine="ds_chat", limits=Limits(zero=3, tp=1, pp=1))
    return decide("deepspeed_chat", workload, cluster, cost, rules, placements=placements, progress=progress)
