"""The parallelism is given; what is left out follows from the cluster."""

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from simcore.backend import Progress
from simcore.cluster import Cluster
from simcore.parallelism import Parallelism
from simcore.placement import Costs
from simcore.plan import Plan
from simcore.quantity import Bytes
from simcore.training_plan import training_plan
from simcore.workloads.transformer_training import Workload

Size = Field(1, ge=1, le=1_000_000)


class Params(BaseModel):
    """A parallelism in the field's words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dp: int | None = Field(
        None, ge=1, le=1_000_000, description="Data-parallel replicas; default: the ranks that are left."
    )
    tp: int = Field(1, ge=1, le=4096, description="Ranks that share each layer's matrices.")
    pp: int = Field(1, ge=1, le=4096, description="Pipeline stages.")
    cp: int = Field(1, ge=1, le=4096, description="Ranks that share each sequence.")
    vpp: int = Field(1, ge=1, le=1024, description="Model chunks on each stage; above 1 the schedule is interleaved.")
    microbatch: int = Field(1, ge=1, le=1_000_000, description="Sequences that go through the model at once.")
    zero: int = Field(0, ge=0, le=3, description="ZeRO stage: 1 shards the optimizer, 2 gradients too, 3 weights too.")
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="Activations computed again in backward."
    )
    sequence_parallel: bool = Field(False, description="Shard norms and residuals over tp as well.")
    overlap: bool = Field(True, description="Reduce gradients while backward goes on.")
    bucket: Bytes = Field(25 * 2.0**20, gt=0, description="Size of a gradient bucket.")
    first_bucket: Bytes = Field(2.0**20, gt=0, description="Size of the first gradient bucket.")
    detail: Literal["layer", "chunk"] = Field(
        "chunk", description="One task for each layer (what `real` runs) or for each chunk."
    )


def plan(
    workload: Workload,
    cluster: Cluster,
    cost: Costs,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan that `params` describes. Raises `PlanError` with every reason why it cannot be."""
    del cost, evaluate, progress  # nothing to weigh
    fields = params.model_dump(exclude={"dp", "bucket", "first_bucket"})
    rest = params.tp * params.pp * params.cp
    dp = params.dp or max(cluster.n_ranks // rest, 1)
    return training_plan(
        workload, cluster, Parallelism(dp=dp, bucket_B=params.bucket, first_bucket_B=params.first_bucket, **fields)
    )
