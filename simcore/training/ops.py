"""Ops that plans of training share, whatever their detail: optimizer, reduction of gradients, gathering of parameters."""

from costmodels.kernels import WIDTH_B, Kernel, kernel
from costmodels.memory import gradient_dtype, storage_dtype
from simcore.plan import Collective, CollectiveKind, Compute
from simcore.training.choice import Choice
from simcore.workloads.transformer_training import TransformerTraining

REPLICAS = ("dp", "cp")
"""Axes along which ranks hold the same parameters: they sum gradients, and ZeRO shards over them."""


def optimizer(group: str, elements: int, workload: TransformerTraining, choice: Choice) -> Compute:
    """AdamW over what this rank owns of `elements`; with master weights on them, then a cast to the weights' dtype."""
    own = -(-elements // choice.shards) if choice.zero else elements
    dtype = storage_dtype(workload.precision)
    if choice.master_weights and WIDTH_B[dtype] < 4:
        kernels: tuple[Kernel, ...] = (
            kernel("adamw", "float32", params=own),
            kernel("cast", "float32", elements=own),
        )
    else:
        kernels = (kernel("adamw", dtype, params=own),)
    return Compute(group=group, kernels=kernels)


def reduce_gradients(group: str, elements: int, workload: TransformerTraining, choice: Choice) -> Collective:
    """All-reduce of `elements` gradients, or with ZeRO their reduce-scatter."""
    dtype = gradient_dtype(workload.precision, master_weights=choice.master_weights)
    kind: CollectiveKind = "reduce_scatter" if choice.zero else "all_reduce"
    nbytes = int((_padded(elements, choice) if choice.zero else elements) * WIDTH_B[dtype])
    return Collective(kind=kind, group=group, along=REPLICAS, nbytes=nbytes, dtype=dtype, stream="grad")


def gather_parameters(group: str, elements: int, workload: TransformerTraining, choice: Choice) -> Collective:
    """All-gather of `elements` parameters of which every replica has a shard."""
    dtype = storage_dtype(workload.precision)
    nbytes = int(_padded(elements, choice) * WIDTH_B[dtype])
    return Collective(kind="all_gather", group=group, along=REPLICAS, nbytes=nbytes, dtype=dtype, stream="param")


def _padded(elements: int, choice: Choice) -> int:
    """Rounded up so that all shards are equal."""
    return -(-elements // choice.shards) * choice.shards
