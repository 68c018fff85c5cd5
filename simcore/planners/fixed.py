"""Parallelism as given in the scenario."""

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from costmodels.kernels import WIDTH_B
from costmodels.memory import gradient_dtype
from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.errors import PlanError, Problem
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.quantity import Bytes
from simcore.training.choice import Choice, Detail
from simcore.training.plans import training_plan
from simcore.workloads.transformer_training import TransformerTraining

MiB = 1024.0**2
MEGATRON_BUCKET = (
    40_000_000  # parameters, and at least a million for each replica: Megatron-LM's DistributedDataParallelConfig
)


class Params(BaseModel):
    """How the job is spread over the ranks of the cluster."""

    model_config = ConfigDict(extra="forbid")

    dp: int | None = Field(None, ge=1, description="Data parallel replicas; default: as many as fill the cluster.")
    tp: int = Field(1, ge=1, description="Ranks that share each layer (tensor parallelism).")
    pp: int = Field(1, ge=1, description="Pipeline stages.")
    cp: int = Field(1, ge=1, description="Ranks that share each sequence (context parallelism).")
    vpp: int = Field(1, ge=1, description="Chunks of layers on each stage; above 1 the schedule is interleaved.")
    microbatch: int = Field(1, ge=1, description="Sequences that a replica computes at a time.")
    zero: Literal[0, 1, 2, 3] = Field(
        0, description="ZeRO stage: shard optimizer (1), gradients too (2), weights too (3)."
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="What the backward pass computes again instead of keeping it."
    )
    sequence_parallel: bool | None = Field(
        None, description="Split norms by tokens over tp; default: yes with detail chunk where tp is above 1."
    )
    overlap: bool = Field(True, description="Communicate while computing where the dependencies allow it.")
    overlap_tensor: bool | None = Field(
        None,
        description="Hide tensor parallel sums behind products of weight gradients (Megatron-LM); default: as `overlap`.",
    )
    overlap_param_gather: bool = Field(
        False, description="With ZeRO 1 and 2: gather parameters during the next forward pass."
    )
    ends_count_as_layers: bool = Field(
        False, description="First and last chunk hold one layer less, for embedding and head."
    )
    attention: Literal["flash", "unfused"] = Field(
        "flash", description="One kernel, or products and softmax by themselves."
    )
    context_exchange: Literal["ring", "all_gather"] = Field(
        "ring", description="How context parallel ranks pass keys and values: hidden behind attention, or all at once."
    )
    detail: Literal["auto", "layer", "chunk"] = Field(
        "auto", description="A task for each layer, or for each pipeline chunk; auto: layer where pp and cp are 1."
    )
    master_weights: bool | None = Field(
        None,
        description="A float32 copy of 16-bit weights and float32 sums of bfloat16 gradients; default: with detail chunk.",
    )
    bucket: Bytes | None = Field(
        None, description="Gradients reduced together; default: 25 MiB, with detail chunk 40 M values."
    )
    first_bucket: Bytes | None = Field(
        None, description="The same for the first ones; default: 1 MiB, with detail chunk `bucket`."
    )


def plan(
    workload: object,
    cluster: Cluster,
    cost: Costs,  # noqa: ARG001 - the plan does not depend on it
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,  # noqa: ARG001 - nothing to choose between
    progress: Progress | None = None,
) -> Plan:
    """The plan. Raises `PlanError` with everything that does not suit the workload or the cluster."""
    if not isinstance(workload, TransformerTraining):
        raise other_workload("fixed")
    made = training_plan(workload, choice_of(params, workload, cluster.n_ranks), cluster)
    if progress is not None:
        progress(1.0, f"{len(made.tasks)} tasks")
    return made


def other_workload(planner: str) -> PlanError:
    """The error of a planner that plans the training of transformers and nothing else."""
    problem = Problem("planner.name", planner, "a planner for this workload", f"{planner} plans transformer_training.")
    return PlanError("a planner for another workload", [problem])


def choice_of(params: Params, workload: TransformerTraining, n_ranks: int) -> Choice:
    """The parameters with every default filled in."""
    ranks = params.tp * params.pp * params.cp
    dp = params.dp or max(n_ranks // ranks, 1)
    sequence_parallel = params.sequence_parallel
    detail = params.detail if params.detail != "auto" else _detail(params)
    if sequence_parallel is None:
        sequence_parallel = detail == "chunk" and params.tp > 1
    master_weights = detail == "chunk" if params.master_weights is None else params.master_weights
    bucket_B = params.bucket or _bucket_B(detail, dp * params.cp, workload.precision, master_weights)
    return Choice(
        dp=dp,
        detail=detail,
        sequence_parallel=sequence_parallel,
        overlap_tensor=params.overlap if params.overlap_tensor is None else params.overlap_tensor,
        master_weights=master_weights,
        bucket_B=bucket_B,
        first_bucket_B=params.first_bucket or (min(MiB, bucket_B) if detail == "layer" else bucket_B),
        **params.model_dump(include=GIVEN),
    )


GIVEN = {
    *("tp", "pp", "cp", "vpp", "microbatch", "zero", "recompute", "overlap"),
    *("overlap_param_gather", "ends_count_as_layers", "attention", "context_exchange"),
}
"""Parameters that a choice takes as they are."""


def _detail(params: Params) -> Detail:
    by_layer = params.pp == params.cp == 1 and not params.sequence_parallel and params.recompute != "selective"
    return "layer" if by_layer else "chunk"


def _bucket_B(detail: Detail, replicas: int, precision: str, master_weights: bool) -> float:
    if detail == "layer":
        return 25 * MiB
    width = WIDTH_B[gradient_dtype(precision, master_weights=master_weights)]
    return width * max(MEGATRON_BUCKET, 1_000_000 * replicas)
