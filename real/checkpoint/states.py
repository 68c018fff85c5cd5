"""What a rank of a plan holds, made from the plan alone: for saves and loads with nobody training beside them."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch

from real.checkpoint.leaves import FlatSlice, Part
from simcore.checkpoint.boxes import Box, chunk
from simcore.checkpoint.layouts import Mesh, Placement, local_part, slices
from simcore.checkpoint.shards import TensorSpec
from simcore.checkpoint.training_states import Part as Kind
from simcore.checkpoint.training_states import mesh_of, parts_of
from simcore.training.choice import Choice
from simcore.workloads.transformer_training import TransformerTraining

Leaf: TypeAlias = "torch.Tensor | Part | FlatSlice"
CPU = torch.device("cpu")
State = dict[str, dict[str, Leaf]]


def state_of(
    workload: TransformerTraining, choice: Choice, rank: int, *, flat: bool, device: torch.device = CPU
) -> State:
    """The tensors of a rank by role and name, each filled with a number of its own (`number_of`)."""
    mesh, state = mesh_of(choice), State()
    for kind in parts_of(workload, choice, flat=flat):
        held = state.setdefault(kind.kind.role, {})
        for spec, leaf in _held(kind, mesh, rank, device):
            memory_of(leaf).fill_(number_of(spec.name))
            held[spec.name] = leaf
    return state


def number_of(name: str) -> float:
    """What a tensor is filled with: small whole numbers are exact in every dtype of at least 8 bits."""
    return float(1 + sum(name.encode()) % 13)


def memory_of(leaf: Leaf) -> torch.Tensor:
    """The local memory of a tensor."""
    return leaf.data if isinstance(leaf, Part | FlatSlice) else leaf


def leaves(state: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and local memory of every tensor."""
    for held in state.values():
        for name, leaf in held.items():
            yield name, memory_of(leaf)


def _held(kind: Kind, mesh: Mesh, rank: int, device: torch.device) -> Iterator[tuple[TensorSpec, Leaf]]:
    """This rank's part of every tensor of a kind."""
    t, d, stage = rank % mesh.tp, rank // mesh.tp % mesh.dp, rank // (mesh.tp * mesh.dp)
    mine = [(s, p) for s, p in zip(kind.tensors, kind.placements, strict=True) if p.stage in (None, stage)]
    if kind.kind.spread == "flat":
        yield from _slices(mine, mesh, d, t, device)
        return
    for spec, placement in mine:
        box = local_part(spec.shape, placement.tp_dim, mesh.tp, t)
        if placement.dp == "shard":
            start, length = chunk(box.lengths[0], mesh.dp, d)
            box = Box((box.offsets[0] + start, *box.offsets[1:]), (length, *box.lengths[1:]))
        data = torch.empty(box.lengths, dtype=getattr(torch, spec.dtype), device=device)
        yield spec, data if box.lengths == spec.shape else Part(data, spec.shape, box.offsets)


def _slices(
    mine: list[tuple[TensorSpec, Placement]], mesh: Mesh, d: int, t: int, device: torch.device
) -> Iterator[tuple[TensorSpec, Leaf]]:
    """This rank's slice of the flat buffer, as slices of the tensors in it."""
    rooms = [local_part(spec.shape, placement.tp_dim, mesh.tp, 0).size for spec, placement in mine]
    parts = [local_part(spec.shape, placement.tp_dim, mesh.tp, t) for spec, placement in mine]
    for number, position, start, stop in slices(parts, rooms, mesh.dp):
        if number == d:
            spec, part = mine[position][0], parts[position]
            data = torch.empty(stop - start, dtype=getattr(torch, spec.dtype), device=device)
            yield spec, FlatSlice(data, spec.shape, start, part.offsets, part.lengths)
