"""What ranks of a training job hold and a checkpoint keeps: weights and AdamW's state under (dp, tp, pp, ZeRO), loaders' state.

A `Part` is one kind of tensors with their placements, from which `layouts.layout` makes the shards of every rank. Ranks of ten
thousand are too many to list: those of one stage differ in their place among the replicas alone (tensor parallel ranks hold equal
parts), and stages of equal layers are alike. `stages_of` says which are, and `held_B` what each replica holds.

Replicas are all ranks that hold the same parameters before ZeRO divides them (data and context parallel ones): `layouts.Mesh.dp`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from costmodels.memory import storage_dtype
from costmodels.transformer import EMBEDDING, HEAD, Parameter, sharded_dim
from simcore.checkpoint.layouts import Mesh, Placement
from simcore.checkpoint.shards import ITEM_B, Ints, TensorSpec
from simcore.training.choice import Choice
from simcore.training.chunk_sizes import ChunkSizes
from simcore.workloads.transformer_training import TransformerTraining

Spread = Literal["replicate", "shard", "flat"]
MODEL, OPTIMIZER = "model", "optimizer"
ROLES = (MODEL, OPTIMIZER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of state: a tensor `prefix` + parameter for every parameter, of one dtype, spread over replicas in one way."""

    role: str
    prefix: str
    dtype: str
    spread: Spread

    @property
    def item_B(self) -> int:
        """Bytes of one element."""
        return ITEM_B[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All tensors of a kind and where they are, for `layouts.layout`. Flat parts are a buffer of their own each."""

    kind: Kind
    tensors: tuple[TensorSpec, ...]
    placements: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTensor:
    """What a tensor parallel rank holds of a parameter before it is spread over replicas.

    `copied`: all tensor parallel ranks hold the same of it.
    """

    name: str
    shape: tuple[int, ...]
    copied: bool

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Pipeline stages that hold equally much, `numbers` of them, and what a tensor parallel rank of one holds."""

    numbers: tuple[int, ...]
    tensors: tuple[LocalTensor, ...]

    @property
    def elements(self) -> int:
        """Parameters of a tensor parallel rank."""
        return sum(t.elements for t in self.tensors)


def mesh_of(choice: Choice) -> Mesh:
    """Replicas, tensor parallel ranks and stages; ranks are numbered as in plans of training."""
    return Mesh(dp=choice.shards, tp=choice.tp, pp=choice.pp)


def kinds_of(workload: TransformerTraining, choice: Choice, *, flat: bool = True) -> tuple[Kind, ...]:
    """Weights and what AdamW keeps for them.

    Megatron-LM: weights in the dtype of computing, whole on each replica, and with master weights a float32 copy beside the
    moments; ZeRO 1 and 2 cut the optimizer's into even slices across tensors. ZeRO 3 is FSDP: weights are kept in float32 and
    sharded like the moments, as even slices of flat buffers (`flat`, FSDP) or rows of each tensor (FSDP2).
    """
    if choice.zero == 3:
        spread: Spread = "flat" if flat else "shard"
        return (
            Kind(role=MODEL, prefix="", dtype="float32", spread=spread),
            *_moments(spread),
        )
    weights = torch_dtype(storage_dtype(workload.precision))
    sharded: Spread = "flat" if choice.zero else "replicate"
    master = [Kind(role=OPTIMIZER, prefix="master.", dtype="float32", spread=sharded)]
    return (
        Kind(role=MODEL, prefix="", dtype=weights, spread="replicate"),
        *(master if choice.master_weights and ITEM_B[weights] < 4 else []),
        *_moments(sharded),
    )


def _moments(spread: Spread) -> Iterator[Kind]:
    for name in ("exp_avg.", "exp_avg_sq."):
        yield Kind(role=OPTIMIZER, prefix=name, dtype="float32", spread=spread)


def torch_dtype(name: str) -> str:
    """Torch's name of a dtype of the cost models: tf32 is kept as float32."""
    return "float32" if name == "tf32" else name


def parts_of(workload: TransformerTraining, choice: Choice, *, flat: bool = True) -> tuple[Part, ...]:
    """Every kind with its tensors and their placements: of a model and a mesh small enough to list."""
    placed = list(_placed(workload, choice))
    return tuple(
        Part(
            kind=kind,
            tensors=tuple(TensorSpec(kind.prefix + name, shape, kind.dtype, kind.role) for (name, shape), _ in placed),
            placements=tuple(
                Placement(stage=stage, tp_dim=tp_dim(name, choice), dp=kind.spread) for (name, _), stage in placed
            ),
        )
        for kind in kinds_of(workload, choice, flat=flat)
    )


def _placed(workload: TransformerTraining, choice: Choice) -> Iterator[tuple[Parameter, int]]:
    """Each parameter once, with its stage; the copy of a tied embedding on the last stage is not kept."""
    seen = set()
    for stage, found in enumerate(_by_stage(workload, choice)):
        for parameter in found:
            if parameter[0] not in seen:
                seen.add(parameter[0])
                yield parameter, stage


def _by_stage(workload: TransformerTraining, choice: Choice) -> list[list[Parameter]]:
    sizes = ChunkSizes(workload, choice)
    return [[p for piece in pieces for p in sizes.parameters(piece)] for pieces in sizes.chunks]


def tp_dim(name: str, choice: Choice) -> int | None:
    """The dimension along which tensor parallelism cuts a parameter, None where it does not."""
    if choice.tp == 1:
        return None
    return 0 if choice.vocab_parallel and name in (EMBEDDING, HEAD) else sharded_dim(name)


def stages_of(workload: TransformerTraining, choice: Choice) -> tuple[Stages, ...]:
    """Stages that hold equally much together, in order of their first; as `parts_of`, a tied embedding counts once."""
    alike: dict[tuple[tuple[tuple[int, ...], bool], ...], tuple[list[int], list[LocalTensor]]] = {}
    held: list[list[LocalTensor]] = [[] for _ in range(choice.pp)]
    for (name, shape), stage in _placed(workload, choice):
        held[stage].append(_local(name, shape, choice))
    for stage, tensors in enumerate(held):
        key = tuple((t.shape, t.copied) for t in tensors)
        alike.setdefault(key, ([], tensors))[0].append(stage)
    return tuple(Stages(numbers=tuple(numbers), tensors=tuple(tensors)) for numbers, tensors in alike.values())


def _local(name: str, shape: tuple[int, ...], choice: Choice) -> LocalTensor:
    """The largest tensor parallel rank's part."""
    dim = tp_dim(name, choice)
    cut = tuple(-(-n // choice.tp) if d == dim else n for d, n in enumerate(shape))
    return LocalTensor(name=name, shape=cut, copied=choice.tp > 1 and dim is None)


def held_B(tensors: Sequence[LocalTensor], kind: Kind, replicas: int) -> Ints:
    """(replicas,) bytes of one kind that a tensor parallel rank of each replica holds."""
    elements = sum(t.elements for t in tensors)
    if kind.spread == "replicate" or replicas == 1:
        return np.full(replicas, elements * kind.item_B, dtype=np.int64)
    if kind.spread == "flat":
        return _slices(elements, replicas) * kind.item_B
    rows = [_slices(t.shape[0], replicas) * prod(t.shape[1:]) for t in tensors]
    return np.asarray(np.sum(rows, axis=0, dtype=np.int64) * kind.item_B)


def _slices(length: int, parts: int) -> Ints:
    """Lengths of `parts` chunks, all but the last ones of ceil(length / parts), as `boxes.chunk` cuts."""
    each = -(-length // parts)
    return np.clip(length - np.arange(parts, dtype=np.int64) * each, 0, each)


def loader_ranks(choice: Choice) -> Ints:
    """Ranks that keep the state of a data loader: those whose other positions are all 0 (ByteCheckpoint, section 3)."""
    mesh = mesh_of(choice)
    return mesh.ranks(0, None, 0)[:: choice.cp]
