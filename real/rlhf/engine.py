"""The 3D-HybridEngine: an actor's matrices between training and generation groups, by the boxes of `simcore.hybridflow`.

Ranks that gather from each other hold as many layers, each as wide, so that each matrix is one all-gather, and what arrives is put
where its box says. With the engine `hybridflow` all of it belongs to the generation shard, and the training shard becomes a view
of that: a rank then holds its generation shard and nothing else.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from real.rlhf.parallel import MATRICES
from real.rlhf.spans import Spans, unrecorded
from simcore.errors import InputError, Problem
from simcore.hybridflow.resharding import Resharding

Key = tuple[int, str]
"""Number of a layer and name of its matrix."""

Box = list[int]
"""First layer, end of layers, first of width, end of width, in cells of the grid."""


class HybridEngine:
    """`shards` are what this rank trains with; `generated` what it generates with, empty outside generation."""

    def __init__(self, of: Resharding, rank: int, layers: int, group: dist.ProcessGroup | None) -> None:
        """`group` is that of the ranks `of.gathered[rank]`, in their order. Raises `InputError` on what cannot be resharded."""
        _check(of, layers)
        self.group = group
        self.each = layers // of.grid[0]
        """Layers of a cell."""
        self.width = of.grid[1]
        members = sorted(of.gathered[rank].tolist())
        self.place = members.index(rank)
        self.members: list[Box] = of.trained[members].tolist()
        self.own: Box = of.trained[rank].tolist()
        self.wanted: Box = of.generated[rank].tolist()
        self.shards: dict[Key, Tensor] = {}
        self.generated: dict[Key, Tensor] = {}
        self.received_B = 0
        """Bytes that came from other ranks in the last `gather`."""

    def take(self, matrices: Mapping[Key, Tensor]) -> None:
        """Train with this rank's box of whole matrices."""
        self.shards = {
            (layer, name): _width(matrices[layer, name], axis, [0, 0, 0, self.width], self.own).clone()
            for layer in self._layers(self.own)
            for name, axis in MATRICES.items()
        }

    @torch.no_grad()
    def gather(self, spans: Spans | None = None) -> dict[Key, Tensor]:
        """The generation shard of this rank, from the training shards of its group, all of which must call it."""
        spans = spans or unrecorded()
        self.received_B = 0
        for layer in range((self.own[1] - self.own[0]) * self.each):
            for name, axis in MATRICES.items():
                self._gather(layer, name, axis, spans)
        for (layer, name), matrix in self.generated.items():
            if (layer, name) in self.shards and self._covers(self.own):
                self.shards[layer, name] = _width(matrix, MATRICES[name], self.wanted, self.own)
        return self.generated

    @torch.no_grad()
    def release(self) -> dict[Key, Tensor]:
        """End of generation: the training shards, in memory of their own again."""
        self.shards = {key: shard.clone(memory_format=torch.contiguous_format) for key, shard in self.shards.items()}
        self.generated = {}
        return self.shards

    def held_B(self) -> int:
        """Bytes of memory behind all shards; what two of them share counts once."""
        held = [x.untyped_storage() for x in (*self.shards.values(), *self.generated.values())]
        storages = {storage.data_ptr(): storage for storage in held}
        return sum(storage.nbytes() for storage in storages.values())

    def _gather(self, layer: int, name: str, axis: int, spans: Spans) -> None:
        """Matrix `name` of everyone's layer number `layer`, counted from its first."""
        own = self.shards[self.own[0] * self.each + layer, name].contiguous()
        places = [self._destination(box, box[0] * self.each + layer, name, axis, own) for box in self.members]
        arriving = [own if i == self.place else _dense(place, own) for i, place in enumerate(places)]
        if self.group is not None and len(self.members) > 1:
            with spans.sending("reshard", own.nbytes * len(self.members)):
                dist.all_gather(arriving, own, group=self.group)
            self.received_B += own.nbytes * (len(self.members) - 1)
        for place, found in zip(places, arriving, strict=True):
            if place is not None and place.data_ptr() != found.data_ptr():
                place.copy_(found)

    def _destination(self, box: Box, layer: int, name: str, axis: int, like: Tensor) -> Tensor | None:
        """Where a member's part of a matrix belongs in the generation shard of this rank, if it does."""
        if not self._covers(box):
            return None
        if (layer, name) not in self.generated:
            shape = list(like.shape)
            shape[axis] = shape[axis] // (self.own[3] - self.own[2]) * (self.wanted[3] - self.wanted[2])
            self.generated[layer, name] = like.new_empty(shape)
        return _width(self.generated[layer, name], axis, self.wanted, box)

    def _covers(self, box: Box) -> bool:
        inside = self.wanted
        return inside[0] <= box[0] and box[1] <= inside[1] and inside[2] <= box[2] and box[3] <= inside[3]

    def _layers(self, box: Box) -> range:
        return range(box[0] * self.each, box[1] * self.each)


def _width(matrix: Tensor, axis: int, span: Box, box: Box) -> Tensor:
    """A view of the width of `box` in a matrix as wide as `span`."""
    cell = matrix.shape[axis] // (span[3] - span[2])
    return matrix.narrow(axis, (box[2] - span[2]) * cell, (box[3] - box[2]) * cell)


def _dense(place: Tensor | None, like: Tensor) -> Tensor:
    """Where a part arrives: in its place if that has no gaps."""
    return place if place is not None and place.is_contiguous() else torch.empty_like(like)


def _check(of: Resharding, layers: int) -> None:
    problems = []
    if of.engine == "ds_chat":
        problems.append(Problem("engine", of.engine, "hybridflow, hybridflow_v", "ZeRO's own gathering is FSDP2's."))
    if layers % of.grid[0]:
        problems.append(Problem("layers", str(layers), f"a multiple of pp ({of.grid[0]})"))
    if problems:
        raise InputError("an actor cannot be resharded for real", problems)
