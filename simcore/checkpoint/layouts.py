"""Which rank holds which shard under data, tensor and pipeline parallelism, without asking the ranks.

Rank (stage, d, t) is number (stage * dp + d) * tp + t: tensor parallelism is the fastest axis and pipeline stages the slowest, as
in the plans of training.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from simcore.checkpoint.boxes import Box, chunk, decompose
from simcore.checkpoint.merging import merge
from simcore.checkpoint.shards import Ints, Shards, TensorSpec, box_columns, concatenate, rank_sets, width
from simcore.errors import InputError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """How many ranks there are along each axis."""

    dp: int = 1
    tp: int = 1
    pp: int = 1

    @property
    def n_ranks(self) -> int:
        """Number of ranks."""
        return self.dp * self.tp * self.pp

    def ranks(self, stage: int | None, d: int | None, t: int | None) -> Ints:
        """Ranks at this position, ascending; None stands for every position along its axis."""
        grid = np.arange(self.n_ranks, dtype=np.int64).reshape(self.pp, self.dp, self.tp)
        return grid[
            _index(stage), _index(d), _index(t)
        ].flatten()  # a copy: thousands of views would keep as many grids

    def dp_groups(self) -> Ints:
        """(n_ranks,) the number of each rank's data-parallel group: ranks that differ in d only."""
        grid = np.arange(self.pp * self.tp, dtype=np.int64).reshape(self.pp, 1, self.tp)
        return np.broadcast_to(grid, (self.pp, self.dp, self.tp)).reshape(-1)


def _index(position: int | None) -> slice:
    return slice(None) if position is None else slice(position, position + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a tensor is. `stage` None: on every pipeline stage. `tp_dim` None: a copy on every rank of a tensor-parallel group.

    `dp`: `replicate` (DDP), `shard` (dimension 0 of the local part in chunks, as in FSDP2 and ZeRO 3) or `flat` (ZeRO 1: all flat
    tensors of a stage and tensor-parallel rank make one buffer that is cut into dp equal slices, across tensors and rows). Buffers
    of one stage are laid out alike: where tensor parallelism cuts a tensor unevenly, smaller parts are padded to the largest one,
    so that copies of other tensors are cut at the same elements on every rank of the group.
    """

    stage: int | None = None
    tp_dim: int | None = None
    dp: Literal["replicate", "shard", "flat"] = "replicate"


def layout(tensors: Sequence[TensorSpec], placements: Sequence[Placement], mesh: Mesh) -> Shards:
    """Shards of `tensors` under `placements` (one each). Raises InputError for a placement that tensor or mesh do not have."""
    _check(tensors, placements, mesh)
    grids = _Grids(tensors, mesh)
    buffers: dict[int | None, list[int]] = defaultdict(list)
    for index, (spec, placement) in enumerate(zip(tensors, placements, strict=True)):
        if spec.nbytes and placement.dp == "flat":
            buffers[placement.stage].append(index)
        elif spec.nbytes:
            grids.add(index, placement)
    if not buffers:
        return grids.built()
    return concatenate([grids.built(), _buffers(tensors, placements, mesh, buffers)])


def _check(tensors: Sequence[TensorSpec], placements: Sequence[Placement], mesh: Mesh) -> None:
    problems = []
    for spec, placement in zip(tensors, placements, strict=True):
        if placement.tp_dim is not None and not 0 <= placement.tp_dim < len(spec.shape):
            problems.append(Problem(f"{spec.name}.tp_dim", str(placement.tp_dim), f"a dimension of {spec.shape}"))
        if placement.stage is not None and not 0 <= placement.stage < mesh.pp:
            problems.append(Problem(f"{spec.name}.stage", str(placement.stage), f"0 to {mesh.pp - 1}"))
    if problems:
        raise InputError("placements that cannot be", problems[:10])


class _Grids:
    """Tensors that are cut along dimensions. Sets of ranks are made when they are first asked for."""

    def __init__(self, tensors: Sequence[TensorSpec], mesh: Mesh) -> None:
        self.tensors, self.mesh, self.columns = tuple(tensors), mesh, width(tensors)
        self.numbers: dict[tuple[int | None, bool, bool], Ints] = {}
        self.sets: list[Ints] = []
        self.tensor: list[Ints] = []
        self.offsets: list[Ints] = []
        self.lengths: list[Ints] = []
        self.holders: list[Ints] = []

    def holders_of(self, stage: int | None, by_d: bool, by_t: bool) -> Ints:
        """(dp or 1, tp or 1) numbers of the sets that hold the parts of a tensor."""
        key = (None if self.mesh.pp == 1 else stage, by_d, by_t)
        if key not in self.numbers:
            places_d = range(self.mesh.dp) if by_d else [None]
            places_t = range(self.mesh.tp) if by_t else [None]
            made = [self.mesh.ranks(stage, d, t) for d in places_d for t in places_t]
            first = len(self.sets)
            self.sets += made
            self.numbers[key] = np.arange(first, len(self.sets), dtype=np.int64).reshape(len(places_d), -1)
        return self.numbers[key]

    def add(self, index: int, placement: Placement) -> None:
        """Cut a tensor for tensor parallelism, and its parts along their first dimension for data parallelism."""
        shape = self.tensors[index].shape
        by_d = placement.dp == "shard" and bool(shape) and self.mesh.dp > 1
        by_t = placement.tp_dim is not None and self.mesh.tp > 1
        parts = (self.mesh.dp if by_d else 1, self.mesh.tp if by_t else 1)
        offsets = np.zeros((*parts, self.columns), dtype=np.int64)
        lengths = np.ones((*parts, self.columns), dtype=np.int64)
        lengths[..., : len(shape)] = shape
        if by_t and placement.tp_dim is not None:
            _cut(offsets, lengths, placement.tp_dim, np.arange(parts[1])[None, :], parts[1])
        if by_d:
            _cut(offsets, lengths, 0, np.arange(parts[0])[:, None], parts[0])
        full = (lengths > 0).all(axis=-1)
        self.tensor.append(np.full(int(full.sum()), index, dtype=np.int64))
        self.offsets.append(offsets[full])
        self.lengths.append(lengths[full])
        self.holders.append(self.holders_of(placement.stage, by_d, by_t)[full])

    def built(self) -> Shards:
        """The table of what was added, which is given up on the way: of millions of shards there is no room for two."""
        none = np.zeros((0, self.columns), dtype=np.int64)
        return Shards(
            n_ranks=self.mesh.n_ranks,
            tensors=self.tensors,
            tensor=_joined(none[:, 0], self.tensor),
            offsets=_joined(none, self.offsets),
            lengths=_joined(none, self.lengths),
            holders=_joined(none[:, 0], self.holders),
            sets=rank_sets(self.sets),
        )


def _joined(none: Ints, pieces: list[Ints]) -> Ints:
    """One array of all pieces, which are gone then."""
    found = np.concatenate([none, *pieces])
    pieces.clear()
    return found


def _buffers(
    tensors: Sequence[TensorSpec],
    placements: Sequence[Placement],
    mesh: Mesh,
    members: Mapping[int | None, Sequence[int]],
) -> Shards:
    """Flat tensors: for each stage and tensor-parallel rank one buffer, cut into dp slices."""
    rank: list[int] = []
    tensor: list[int] = []
    boxes: list[Box] = []
    for stage, indices in members.items():
        largest = [local_part(tensors[i].shape, placements[i].tp_dim, mesh.tp, 0).size for i in indices]
        for t in range(mesh.tp):
            parts = [local_part(tensors[i].shape, placements[i].tp_dim, mesh.tp, t) for i in indices]
            for d, position, start, stop in slices(parts, largest, mesh.dp):
                part = parts[position]
                found = [box.shifted(part.offsets) for box in decompose(start, stop, part.lengths)]
                holders = mesh.ranks(stage, d, t).tolist()
                rank += [r for r in holders for _ in found]
                tensor += [indices[position]] * (len(holders) * len(found))
                boxes += found * len(holders)
    offsets, lengths = box_columns(boxes, width(tensors))
    return merge(
        n_ranks=mesh.n_ranks,
        tensors=tensors,
        rank=np.array(rank, dtype=np.int64),
        tensor=np.array(tensor, dtype=np.int64),
        offsets=offsets,
        lengths=lengths,
    )


def slices(parts: Sequence[Box], rooms: Sequence[int], dp: int) -> Iterator[tuple[int, int, int, int]]:
    """(slice, position in `parts`, first element of the part, one behind its last) wherever one of `dp` equal slices of a buffer
    meets a part; each part has a room of the buffer."""
    each = -(-sum(rooms) // dp)
    begin = 0
    for position, (part, room) in enumerate(zip(parts, rooms, strict=True)):
        end = begin + part.size
        for d in range(begin // each, -(-end // each)) if part.size else ():
            yield d, position, max(begin, d * each) - begin, min(end, (d + 1) * each) - begin
        begin += room


def local_part(shape: tuple[int, ...], tp_dim: int | None, tp: int, t: int) -> Box:
    """What tensor-parallel rank t of `tp` holds of a tensor."""
    offsets, lengths = [0] * len(shape), list(shape)
    if tp_dim is not None:
        offsets[tp_dim], lengths[tp_dim] = chunk(shape[tp_dim], tp, t)
    return Box(tuple(offsets), tuple(lengths))


def _cut(offsets: Ints, lengths: Ints, dim: int, index: Ints, parts: int) -> None:
    """Keep chunk `index` of `parts` along `dim` of each box, in place."""
    length = lengths[..., dim]
    each = -(-length // parts)
    start = np.minimum(index * each, length)
    offsets[..., dim] += start
    lengths[..., dim] = np.minimum(each, length - start)
