"""Tensors as ranks hold them: whole, as a part, as a flat slice or as torch's DTensor; each as boxes with memory.

A box comes with a view of the rank's memory in which its elements are row by row, so saving and loading need to know nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from real.checkpoint.values import to_plain
from simcore.checkpoint.boxes import Box, decompose, whole
from simcore.checkpoint.shards import ITEM_B, TensorSpec
from simcore.errors import InputError, Problem


@dataclass(frozen=True, slots=True)
class Part:
    """A regular part of a tensor of `shape`: this rank's shard begins at `offsets`. For tensor parallelism without DTensor."""

    data: torch.Tensor
    shape: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FlatSlice:
    """Elements [start, start + data.numel()) of a tensor that was flattened, as ZeRO 1 cuts it: `data` is 1-D.

    `shape` is that of the whole tensor. Where only a part of it was flattened (this rank's tensor-parallel shard), `offsets` and
    `lengths` say which, and `start` counts from its corner.
    """

    data: torch.Tensor
    shape: tuple[int, ...]
    start: int
    offsets: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor and where this rank has it: `data` has the box's lengths as its shape."""

    spec: TensorSpec
    box: Box
    data: torch.Tensor


@dataclass(frozen=True, slots=True)
class Described:
    """What one rank holds: pieces, names that share another's memory, and everything else as plain values for each role."""

    pieces: tuple[Piece, ...]
    aliases: Mapping[str, str]
    values: Mapping[str, Any]
    specs: Mapping[str, TensorSpec]
    leaves: Mapping[str, Any]
    """Tensors as they were given, by name; arrays of numpy as the memory that is read from and written to."""

    @property
    def held(self) -> list[tuple[TensorSpec, Box]]:
        """What plans are made of; tensors without elements by their empty box."""
        empty = [(spec, whole(spec.shape)) for spec in self.specs.values() if not spec.nbytes]
        return [*((p.spec, p.box) for p in self.pieces), *empty]


def describe(state: Mapping[str, Any], rank: int, per_rank: tuple[str, ...]) -> Described:
    """Take a state apart. Roles in `per_rank` belong to this rank alone. Raises InputError with every leaf that cannot be kept."""
    collector = _Collector()
    values = {}
    for role, tree in state.items():
        collector.role = role
        values[role] = to_plain(tree, f"{role}/{rank}" if role in per_rank else role, collector.leaf)
    if collector.problems:
        raise InputError("the state holds tensors that cannot be saved", collector.problems[:10])
    return Described(tuple(collector.pieces), collector.aliases, values, collector.specs, collector.leaves)


class _Collector:
    def __init__(self) -> None:
        self.role = ""
        self.pieces: list[Piece] = []
        self.aliases: dict[str, str] = {}
        self.specs: dict[str, TensorSpec] = {}
        self.leaves: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._seen: dict[tuple[Any, ...], str] = {}

    def leaf(self, name: str, value: Any) -> str | None:
        if isinstance(value, np.ndarray):
            self.leaves[name] = np.ascontiguousarray(value).reshape(value.shape)
            value = torch.from_numpy(self.leaves[name])
        if not isinstance(value, torch.Tensor | Part | FlatSlice):
            return None
        self.leaves.setdefault(name, value)
        try:
            spec, pieces = pieces_of(name, self.role, value)
        except InputError as error:
            self.problems += error.problems
            return name
        key = tuple((p.data.data_ptr(), p.data.stride(), spec.shape, spec.dtype, p.box) for p in pieces)
        if pieces and self._seen.setdefault(key, name) != name:
            self.aliases[name] = self._seen[key]
            return name
        self.specs[name] = spec
        self.pieces += pieces
        return name


def pieces_of(name: str, role: str, value: "torch.Tensor | Part | FlatSlice") -> tuple[TensorSpec, list[Piece]]:
    """One tensor and its boxes on this rank, none where the rank has no element of it. Raises InputError for what it cannot be."""
    if isinstance(value, DTensor):
        local, shape = value.to_local(), tuple(value.shape)
        spec = _spec(name, role, local, shape)
        lengths, offsets = _place(name, value)
        return spec, _part(spec, Box(offsets, lengths), local) if local.numel() else []
    if isinstance(value, Part):
        spec = _spec(name, role, value.data, value.shape)
        return spec, _part(spec, Box(tuple(value.offsets), tuple(value.data.shape)), value.data)
    if isinstance(value, FlatSlice):
        spec = _spec(name, role, value.data, value.shape)
        return spec, _flat(spec, value)
    spec = _spec(name, role, value, tuple(value.shape))
    return spec, _part(spec, whole(spec.shape), value)


def _spec(name: str, role: str, data: torch.Tensor, shape: tuple[int, ...]) -> TensorSpec:
    dtype = str(data.dtype).removeprefix("torch.")
    if dtype not in ITEM_B:
        raise _refused(Problem(name, f"dtype {dtype}", ", ".join(ITEM_B)))
    if data.layout != torch.strided or data.is_meta:
        given = "meta" if data.is_meta else str(data.layout)
        raise _refused(Problem(name, f"a {given} tensor", "a dense tensor with memory"))
    return TensorSpec(name, tuple(shape), dtype, role)


def _refused(problem: Problem) -> InputError:
    return InputError("a tensor cannot be kept", [problem])


def _part(spec: TensorSpec, box: Box, data: torch.Tensor) -> list[Piece]:
    inside = len(box.offsets) == len(box.lengths) == len(spec.shape) and all(
        0 <= a <= b <= n for a, b, n in zip(box.offsets, box.stops, spec.shape, strict=True)
    )
    if not inside:
        given = f"a part of shape {tuple(data.shape)} at {box.offsets}"
        raise _refused(Problem(spec.name, given, f"within shape {spec.shape}"))
    return [Piece(spec, box, data.detach())] if box.size else []


def _place(name: str, value: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and offsets of this rank's part of a DTensor."""
    if any(isinstance(p, Partial) for p in value.placements):
        advice = "Reduce it first: redistribute to Replicate or Shard."
        raise _refused(Problem(name, str(value.placements), "Shard or Replicate", advice))
    lengths, offsets = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return tuple(lengths), tuple(offsets)


def _flat(spec: TensorSpec, value: FlatSlice) -> list[Piece]:
    corner = value.offsets if value.offsets is not None else (0,) * len(spec.shape)
    lengths = value.lengths if value.lengths is not None else spec.shape
    data, size = value.data.detach(), value.data.numel()
    inside = len(corner) == len(lengths) == len(spec.shape) and all(
        0 <= a <= a + n <= side for a, n, side in zip(corner, lengths, spec.shape, strict=True)
    )
    if data.dim() != 1 or not data.is_contiguous() or not inside or not 0 <= value.start <= prod(lengths) - size:
        given = f"{size} elements from {value.start} of {lengths} at {corner}, strides {data.stride()}"
        raise _refused(Problem(spec.name, given, f"a contiguous 1-D slice within shape {spec.shape}"))
    pieces, position = [], 0
    for box in decompose(value.start, value.start + size, lengths):
        pieces.append(Piece(spec, box.shifted(corner), data[position : position + box.size].view(box.lengths)))
        position += box.size
    return pieces
