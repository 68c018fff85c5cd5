"""Tensors, their shards, and who holds which: tables that stay fast with a million shards.

Two ranks that hold the same box of a tensor are replicas of one shard. A shard without elements is not listed: the tensor's
shape says all there is to know.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from simcore.checkpoint.boxes import Box
from simcore.errors import InputError, Problem

Ints = NDArray[np.int64]

ITEM_B = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("int8", "uint8", "bool"), 1),
    "complex128": 16,
}
"""Bytes of one element, by torch's name of the dtype."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as it would be on a single rank. `role` is the part of the state that it belongs to: model, optimizer, ..."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str = "model"

    @property
    def item_B(self) -> int:
        """Bytes of one element."""
        return ITEM_B[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return prod(self.shape) * self.item_B


@dataclass(frozen=True, slots=True)
class Shard:
    """A box of a tensor and the ranks that hold it, in ascending order."""

    tensor: TensorSpec
    box: Box
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankSets:
    """Sets of ranks: set i is ranks[starts[i]:starts[i + 1]], ascending."""

    starts: Ints  # (sets + 1,)
    ranks: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Ints:
        return self.ranks[self.starts[index] : self.starts[index + 1]]

    @property
    def sizes(self) -> Ints:
        """Ranks in each set."""
        return np.diff(self.starts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards:
    """Distinct shards of a state over `n_ranks` ranks, n of them, of at most d dimensions.

    Dimensions that a tensor lacks have offset 0 and length 1. Shards are in no particular order; replicas are one shard.
    """

    n_ranks: int
    tensors: tuple[TensorSpec, ...]
    tensor: Ints  # (n,) position in `tensors`
    offsets: Ints  # (n, d)
    lengths: Ints  # (n, d)
    holders: Ints  # (n,) which of `sets` holds the shard
    sets: RankSets

    def __len__(self) -> int:
        return len(self.tensor)

    @cached_property
    def sizes(self) -> Ints:
        """(n,) elements of each shard."""
        return np.asarray(self.lengths.prod(axis=1, dtype=np.int64))

    @cached_property
    def nbytes(self) -> Ints:
        """(n,) bytes of each shard."""
        item_B = np.array([t.item_B for t in self.tensors], dtype=np.int64)
        return np.asarray(self.sizes * item_B[self.tensor], dtype=np.int64)

    @property
    def total_B(self) -> int:
        """Bytes of all shards, replicas counted once."""
        return int(self.nbytes.sum())

    def held_B(self) -> Ints:
        """(n_ranks,) bytes that each rank holds."""
        by_set = np.bincount(self.holders, weights=self.nbytes, minlength=len(self.sets))
        each = np.repeat(by_set, self.sets.sizes)
        return np.bincount(self.sets.ranks, weights=each, minlength=self.n_ranks).astype(np.int64)

    def box(self, index: int) -> Box:
        """The box of one shard, with the dimensions that its tensor has."""
        ndim = len(self.tensors[self.tensor[index]].shape)
        return Box(tuple(self.offsets[index, :ndim].tolist()), tuple(self.lengths[index, :ndim].tolist()))

    def __getitem__(self, index: int) -> Shard:
        spec = self.tensors[self.tensor[index]]
        return Shard(spec, self.box(index), tuple(self.sets[int(self.holders[index])].tolist()))

    def __iter__(self) -> Iterator[Shard]:
        return (self[i] for i in range(len(self)))

    def take(self, rows: Ints) -> "Shards":
        """The table with these rows only."""
        return Shards(
            n_ranks=self.n_ranks,
            tensors=self.tensors,
            tensor=self.tensor[rows],
            offsets=self.offsets[rows],
            lengths=self.lengths[rows],
            holders=self.holders[rows],
            sets=self.sets,
        )


def rank_sets(sets: Iterable[Sequence[int] | Ints]) -> RankSets:
    """Sets of ranks, each ascending and not empty."""
    arrays = [np.asarray(s, dtype=np.int64) for s in sets]
    starts = np.concatenate([[0], np.cumsum([len(a) for a in arrays], dtype=np.int64)]).astype(np.int64)
    return RankSets(starts=starts, ranks=np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64))


def width(tensors: Sequence[TensorSpec]) -> int:
    """Columns of a table of their boxes."""
    return max((len(t.shape) for t in tensors), default=0) or 1


def box_columns(boxes: Sequence[Box], columns: int) -> tuple[Ints, Ints]:
    """Offsets and lengths of boxes as columns of a table, (n, columns) each."""
    offsets = np.zeros((len(boxes), columns), dtype=np.int64)
    lengths = np.ones((len(boxes), columns), dtype=np.int64)
    for row, box in enumerate(boxes):
        offsets[row, : len(box.offsets)] = box.offsets
        lengths[row, : len(box.lengths)] = box.lengths
    return offsets, lengths


def concatenate(tables: Sequence[Shards]) -> Shards:
    """Tables of the same tensors and ranks as one; they have no shard in common."""
    first_set = np.cumsum([0, *(len(t.sets) for t in tables)])
    sets = [t.sets for t in tables]
    return Shards(
        n_ranks=tables[0].n_ranks,
        tensors=tables[0].tensors,
        tensor=np.concatenate([t.tensor for t in tables]),
        offsets=np.concatenate([t.offsets for t in tables]),
        lengths=np.concatenate([t.lengths for t in tables]),
        holders=np.concatenate([t.holders + first for t, first in zip(tables, first_set, strict=False)]),
        sets=RankSets(
            starts=np.concatenate([[0], np.cumsum(np.concatenate([s.sizes for s in sets]))]).astype(np.int64),
            ranks=np.concatenate([s.ranks for s in sets]),
        ),
    )


def check_boxes(tensors: Sequence[TensorSpec], tensor: Ints, offsets: Ints, lengths: Ints) -> None:
    """Refuse boxes that are empty or reach outside their tensor. Raises InputError that names the first ten."""
    shapes = np.ones((len(tensors), offsets.shape[1]), dtype=np.int64)
    for row, spec in zip(shapes, tensors, strict=True):
        row[: len(spec.shape)] = spec.shape
    wrong = np.flatnonzero(
        ((offsets < 0) | (lengths < 1) | (lengths > shapes[tensor]) | (offsets > shapes[tensor] - lengths)).any(axis=1)
    )
    if not len(wrong):
        return
    problems = []
    for i in wrong[:10].tolist():
        spec = tensors[tensor[i]]
        given = f"offsets {offsets[i].tolist()}, lengths {lengths[i].tolist()}"
        problems.append(Problem(f"shard of {spec.name}", given, f"a box within shape {spec.shape}"))
    raise InputError(f"{len(wrong)} shards are not part of their tensor", problems)
