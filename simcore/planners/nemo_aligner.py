"""NeMo-Aligner: actor and reference on one pool, critic and reward on another, generation split as training is.

Shen et al. 2024, version 0.2.0 as HybridFlow compares it: no resharding, modules of training generate, without an engine for it.
"""

from collections.abc import Callable
from dataclasses import replace

from pydantic import Field

from simcore.cluster import Cluster
from simcore.hybridflow.placements import named
from simcore.hybridflow.planner import Common, decide, rules_of
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.training.quick_parts import Prices
from simcore.workloads.rlhf import Rlhf

ENGINE = "huggingface"
"""Plain PyTorch modules that generate token by token (assumption: Megatron-LM's take as long as those that were measured)."""


class Params(Common):
    """What every planner of RLHF takes, and generation in static batches."""

    batch: int = Field(16, ge=1, description="Sequences of a replica at a time (assumption: 16).")


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
        placements = [named("split", workload.dataflow.roles)]
        generation = workload.generation.model_copy(update={"engine": ENGINE, "max_num_seqs": params.batch})
        workload = replace(workload, generation=generation)
    rules = rules_of(params, engine="hybridflow", same_degrees=True)
    return decide("nemo_aligner", workload, cluster, cost, rules, placements=placements, progress=progress)
