"""Bytes that each rank of a training job writes and reads, for any number of ranks.

Tensor parallel ranks write equally much and so do equal pipeline stages, so the plan of one stage's replicas, made by the functions
that a real save uses (`saving`), says it for all. What tensor parallel ranks have copies of (norms, biases of rows) they share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from simcore.checkpoint.layouts import Mesh, Placement, layout
from simcore.checkpoint.saving import LARGEST_SHARD_B, imbalance, lowest_rank_plan, save_plan
from simcore.checkpoint.shards import Ints, TensorSpec
from simcore.checkpoint.training_states import (
    ROLES,
    Kind,
    LocalTensor,
    Stages,
    held_B,
    kinds_of,
    mesh_of,
    stages_of,
    tp_dim,
)
from simcore.training.choice import Choice
from simcore.workloads.transformer_training import TransformerTraining

Balance = Literal["balanced", "first_group"]
"""Who writes what replicas hold: all, as evenly as shards allow; or the first replica, as DCP until 2024 and Megatron-LM did."""
MOST_SIZES = 8
"""Sizes of files that are told apart in a simulation; ranks between two of them count as the larger."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """`by_role` (stages, replicas, roles): bytes that each tensor parallel rank writes; `shards`, of the same shape, in how many
    pieces; roles as `training_states.ROLES`."""

    choice: Choice
    by_role: Ints
    shards: Ints

    @property
    def total_B(self) -> int:
        """Bytes of the checkpoint, without loaders."""
        return int(self.by_role.sum()) * self.choice.tp

    @property
    def imbalance(self) -> float:
        """Most that a rank writes over the mean."""
        return imbalance(self.by_role.sum(axis=2).reshape(-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Writers:
    """Ranks that write alike: `role_B` bytes of each role, in `shards` pieces altogether."""

    ranks: Ints
    role_B: tuple[int, ...]
    shards: int


def written(
    workload: TransformerTraining,
    choice: Choice,
    balance: Balance = "balanced",
    *,
    flat: bool = True,
    largest_B: int | None = LARGEST_SHARD_B,
) -> Written:
    """Bytes by rank. `largest_B`: shards are cut to that size before they are dealt to replicas; None leaves them whole."""
    replicas = mesh_of(choice).dp
    by_role = np.zeros((choice.pp, replicas, len(ROLES)), dtype=np.int64)
    shards = np.zeros_like(by_role)
    for stages in stages_of(workload, choice):
        at = list(stages.numbers)
        shared = [_share(t, choice.tp) for t in stages.tensors]
        for kind in kinds_of(workload, choice, flat=flat):
            role = ROLES.index(kind.role)
            nbytes, pieces = _of_kind(shared, kind, replicas, balance, largest_B)
            by_role[at, :, role] += nbytes
            shards[at, :, role] += pieces
    return Written(choice=choice, by_role=by_role, shards=shards)


def _share(tensor: LocalTensor, tp: int) -> LocalTensor:
    """A tensor of which tensor parallel ranks have copies, as one of them writes it: its part along the first dimension."""
    if not tensor.copied:
        return tensor
    shape = (-(-tensor.shape[0] // tp), *tensor.shape[1:])
    return LocalTensor(name=tensor.name, shape=shape, copied=False)


def _of_kind(
    tensors: Sequence[LocalTensor], kind: Kind, replicas: int, balance: Balance, largest_B: int | None
) -> tuple[Ints, Ints]:
    """(replicas,) bytes and shards of one kind."""
    if kind.spread != "replicate" or replicas == 1:
        pieces = np.full(replicas, _pieces(len(tensors), kind, replicas), dtype=np.int64)
        return held_B(tensors, kind, replicas), pieces
    specs = [TensorSpec(kind.prefix + t.name, t.shape, kind.dtype, kind.role) for t in tensors]
    shards = layout(specs, [Placement()] * len(specs), Mesh(dp=replicas))
    plan = save_plan(shards, largest_B=largest_B) if balance == "balanced" else lowest_rank_plan(shards)
    return plan.written_B, np.bincount(plan.writer, minlength=replicas)


def _pieces(tensors: int, kind: Kind, replicas: int) -> int:
    """Shards of one rank: its slice's tensors and about one box more at either end; of rows a part of each tensor."""
    return tensors if kind.spread != "flat" else -(-tensors // replicas) + 2


def writers_of(found: Written, most: int = MOST_SIZES) -> tuple[Writers, ...]:
    """Ranks in groups of alike sizes, of each role at most `most`; those that write nothing are left out."""
    mesh = mesh_of(found.choice)
    sizes = np.stack([_rounded(found.by_role[..., r], most) for r in range(len(ROLES))], axis=-1)
    flat = sizes.reshape(-1, len(ROLES))
    kinds, of_place = np.unique(flat, axis=0, return_inverse=True)
    pieces = found.shards.sum(axis=2).reshape(-1)
    return tuple(_groups(kinds, of_place.reshape(-1), pieces, mesh))


def _groups(kinds: Ints, of_place: Ints, pieces: Ints, mesh: Mesh) -> Iterator[Writers]:
    for i, sizes in enumerate(kinds.tolist()):
        places = np.flatnonzero(of_place == i)
        if any(sizes):
            ranks = (places[:, None] * mesh.tp + np.arange(mesh.tp)).reshape(-1)
            yield Writers(ranks=ranks, role_B=tuple(sizes), shards=int(pieces[places].max()))


def _rounded(nbytes: Ints, most: int) -> Ints:
    """Sizes as they are if they are few, else the largest of each of `most` ranges; 0 stays 0."""
    if len(np.unique(nbytes)) <= most:
        return nbytes
    step = -(-int(nbytes.max()) // most)
    band = -(-nbytes // step)
    out = np.zeros_like(nbytes)
    for b in np.unique(band[band > 0]):
        out[band == b] = nbytes[band == b].max()
    return out


def replica_items(workload: TransformerTraining, choice: Choice, *, flat: bool = True) -> int:
    """Replicas among which writers are chosen, over all ranks: each rank's shards of kinds that replicas hold whole."""
    replicas = mesh_of(choice).dp
    if replicas == 1:
        return 0
    kinds = sum(k.spread == "replicate" for k in kinds_of(workload, choice, flat=flat))
    return sum(len(s.numbers) * len(s.tensors) for s in stages_of(workload, choice)) * kinds * replicas * choice.tp


def held_items(workload: TransformerTraining, choice: Choice, *, flat: bool = True) -> int:
    """Boxes that a rank holds, of the stage with most: what it describes to the others in each save and load."""
    replicas, kinds = mesh_of(choice).dp, kinds_of(workload, choice, flat=flat)
    most = max(len(s.tensors) for s in stages_of(workload, choice))
    return sum(most if k.spread == "replicate" or replicas == 1 else _pieces(most, k, replicas) for k in kinds)


def placed_B(workload: TransformerTraining, saved: Choice, wanted: Choice, *, flat: bool = True) -> Ints:
    """(stages, roles) bytes that a rank of each stage of `wanted` copies to where they belong after it has read them itself.

    Shards are read block by block, and a block to its place where that is one run of memory: rows of a tensor are, columns, which
    tensor parallelism cuts others into, are not. What is handed on to others is another matter (`load_tasks`).
    """
    placed = np.zeros((wanted.pp, len(ROLES)), dtype=np.int64)
    if saved.tp == wanted.tp:
        return placed
    wide = max(saved, wanted, key=lambda choice: choice.tp)
    for stages in stages_of(workload, wanted):
        cut = [t for t in stages.tensors if (tp_dim(t.name, wide) or 0) > 0]
        for kind in kinds_of(workload, wanted, flat=flat):
            placed[list(stages.numbers), ROLES.index(kind.role)] += int(held_B(cut, kind, mesh_of(wanted).dp).max())
    return placed


def _shards_B(stages: Stages, kind: Kind, saved: Choice, coarse: int) -> float:
    """Size that the saved shards of large tensors have: a replica's slice, or what shards are cut to."""
    slice_B = stages.elements * coarse * kind.item_B / mesh_of(saved).dp
    return min(slice_B, LARGEST_SHARD_B) if kind.spread == "flat" else LARGEST_SHARD_B


def _whole_shards_B(tensor: LocalTensor, kind: Kind, wide: Choice, coarse: int, shards_B: float) -> float:
    """Bytes of the saved shards that a tensor parallel rank wants something of, for one of its tensors. `coarse` ranks want what
    one saved: of columns each of them reads all, of rows the shards that its own rows are in."""
    nbytes = tensor.elements * kind.item_B
    if coarse == 1 or tensor.copied:
        return nbytes
    if tp_dim(tensor.name, wide) != 0:
        return nbytes * coarse
    shards = ceil(nbytes * coarse / shards_B)
    if kind.spread == "shard":
        shards = max(shards, coarse)
    touched = max(ceil((i + 1) * shards / coarse) - i * shards // coarse for i in range(coarse))
    return nbytes * coarse * touched / shards


def read_B(
    workload: TransformerTraining,
    saved: Choice,
    wanted: Choice,
    *,
    once: bool = True,
    flat: bool = True,
) -> tuple[Ints, Ints]:
    """(stages, roles) bytes that a rank of each stage of `wanted` reads, and that it gets from others of its replicas' group.

    With `once` the ranks that hold the same parameters before ZeRO divides them read each byte once together and hand it on;
    otherwise every rank reads what it wants itself. Saved shards are read whole, for their checksum: where the wanted tensor
    parallelism is finer than the saved one, each of its ranks reads all of a shard that it wants a part of.
    """
    mesh = mesh_of(wanted)
    read = np.zeros((wanted.pp, len(ROLES)), dtype=np.int64)
    received = np.zeros_like(read)
    coarse, wide = max(wanted.tp // saved.tp, 1), max(saved, wanted, key=lambda choice: choice.tp)
    same = (saved.shards, saved.tp, saved.pp, saved.zero) == (wanted.shards, wanted.tp, wanted.pp, wanted.zero)
    for stages in stages_of(workload, wanted):
        at = list(stages.numbers)
        for kind in kinds_of(workload, wanted, flat=flat):
            role = ROLES.index(kind.role)
            wants = int(held_B(stages.tensors, kind, mesh.dp).max())
            local = stages.elements * kind.item_B
            shards_B = _shards_B(stages, kind, saved, coarse)
            more = sum(_whole_shards_B(t, kind, wide, coarse, shards_B) for t in stages.tensors) / max(local, 1)
            mine = -(-local // mesh.dp) if once else wants
            read[at, role] += int(mine * more)
            if once:
                received[at, role] += wants - (wants if same and kind.spread != "replicate" else wants // mesh.dp)
    return read, received
