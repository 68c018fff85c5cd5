"""What a layer, the ends of the model, and replicas' communication cost: the few numbers that many configurations share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from costmodels import memory
from costmodels.kernels import WIDTH_B, Kernel, kernel
from costmodels.specs import DeviceSpec
from costmodels.transformer import EMBEDDING, end_parameters, layer_parameters
from costmodels.transformer_kernels import NARROW, Kernels
from simcore.cluster import Cluster
from simcore.demand import Demand
from simcore.engine.placement import Costs
from simcore.plan import Collective, Transfer
from simcore.training.choice import Choice, stage_name
from simcore.training.chunk_sizes import ChunkSizes, Named, Piece, PieceOps
from simcore.training.ops import gather_parameters, optimizer, reduce_gradients
from simcore.training.sustained import kind_of
from simcore.workloads.transformer_training import TransformerTraining

Floats = NDArray[np.float64]

LAYER, EMBED, HEAD = Piece(range(1)), Piece(range(0), embed=True), Piece(range(0), head=True)
GROUP = stage_name(0)
PASSES = ((LAYER, True), (LAYER, False), (EMBED, True), (EMBED, False), (HEAD, True), (HEAD, False))
"""Pieces, and whether forward, in the order of `Parts.passes`."""

SPENT = ("products", "narrow", "attention", "streaming", "kernels", "before", "beside", "core", "exchange", "after")
"""What a pass is made of: seconds of kernels by kind (`narrow`: products of fewer than 16 bits), how many kernels are launched,
and seconds of what stands before, beside, and after them; `core` is attention that has `exchange` beside it."""


class Prices(Costs, Protocol):
    """What the closed form asks of a cost model: also many kernels at once."""

    def seconds_each(self, kernels: Sequence[Kernel], device: DeviceSpec) -> Floats: ...


@dataclass(frozen=True)
class Parts:
    """Costs of parts, of one workload on one cluster.

    `early_stop`: recomputing a layer ends with the last activation that is needed, before its last product, as PyTorch's
    non-reentrant checkpoints do. `by_layer`: ZeRO 3 moves whole layers, as plans do; otherwise buckets, as it did when the
    overheads of published jobs were fitted.
    """

    workload: TransformerTraining
    cluster: Cluster
    cost: Prices
    early_stop: bool = False
    ep: int = 1
    by_layer: bool = True
    _ops: dict[object, PieceOps] = field(default_factory=dict, repr=False, compare=False)
    _spent: dict[object, list[float]] = field(default_factory=dict, repr=False, compare=False)
    _priced: dict[Kernel, tuple[int, tuple[float, ...]]] = field(default_factory=dict, repr=False, compare=False)
    _demands: dict[object, Demand] = field(default_factory=dict, repr=False, compare=False)
    _elements: dict[object, tuple[int, int, int]] = field(default_factory=dict, repr=False, compare=False)

    def passes(self, choice: Choice) -> tuple[float, ...]:
        """The numbers of `SPENT` for each of `PASSES`, one after the other, without accumulating gradients."""
        found: list[float] = []
        for key, ops in self._passes(choice):
            if key not in self._spent:
                self._spent[key] = self._spend(choice, ops)
            found += self._spent[key]
        if self.early_stop and choice.recompute == "full":
            for i, seconds in enumerate(self.kinds(self._last_product(choice))):
                found[len(SPENT) + i] -= seconds
        return tuple(found)

    def pass_kernels(self, choice: Choice) -> Iterator[Kernel]:
        """What `passes` needs prices of."""
        for _, ops in self._passes(choice):
            yield from ops.compute.kernels
            if ops.core is not None:
                yield from ops.core.kernels

    def _passes(self, choice: Choice) -> Iterator[tuple[object, PieceOps]]:
        """The ops of each of `PASSES`, after what tells it from those of other choices."""
        sizes = ChunkSizes(self.workload, choice)
        rows = choice.microbatch * self.workload.seq_len // choice.cp
        for piece, forward in PASSES:
            key = (piece.kind, forward, *_what_matters(choice, rows, piece, forward=forward))
            if key not in self._ops:
                self._ops[key] = sizes.ops(0, piece, forward=forward, accumulates=False)
            yield key, self._ops[key]

    def _spend(self, choice: Choice, ops: PieceOps) -> list[float]:
        """The numbers of `SPENT` for one pass."""
        core = ops.core.kernels if ops.core is not None else ()
        return [
            *self.kinds(ops.compute.kernels),
            float(sum(k.count for k in (*ops.compute.kernels, *core))),
            self._all(choice, ops.before),
            self._all(choice, ops.beside),
            self.seconds(core),
            self._all(choice, ops.beside_core),
            self._all(choice, ops.after),
        ]

    def accumulation(self, choice: Choice) -> tuple[float, ...]:
        """Seconds in which a backward pass of a layer, of the embedding and of the head adds its gradients to their sums."""
        return tuple(self.seconds(added) for added in self._accumulations(choice))

    def accumulation_kernels(self, choice: Choice) -> Iterator[Kernel]:
        """What `accumulation` needs prices of."""
        for added in self._accumulations(choice):
            yield from added

    def _accumulations(self, choice: Choice) -> list[Kernels]:
        sizes = ChunkSizes(self.workload, choice)
        return [sizes.accumulation(piece) for piece in (LAYER, EMBED, HEAD)]

    def price(self, kernels: Iterable[Kernel]) -> None:
        """Finds the seconds of kernels, all together, which takes a small part of the time that one by one takes."""
        new = [k for k in dict.fromkeys(kernels) if k not in self._priced]
        if not new:
            return
        each = np.stack([self.cost.seconds_each(new, device) for device in self.cluster.devices], axis=1).tolist()
        for k, seconds in zip(new, each, strict=True):
            self._priced[k] = (SPENT.index(kind_of(k)), tuple(seconds))

    def kinds(self, kernels: Kernels) -> list[float]:
        """Seconds of products, of narrow ones, of attention and of all others, each on the slowest device."""
        if not all(k in self._priced for k in kernels):
            self.price(kernels)
        if len(self.cluster.devices) == 1:
            sums = [0.0, 0.0, 0.0, 0.0]
            for k in kernels:
                kind, (seconds,) = self._priced[k]
                sums[kind] += seconds
            return sums
        by_device = np.zeros((4, len(self.cluster.devices)))
        for k in kernels:
            kind, each = self._priced[k]
            by_device[kind] += each
        return [float(x) for x in by_device.max(axis=1)]

    def seconds(self, kernels: Kernels) -> float:
        """On the slowest device, for which all others wait; kernels are of one kind."""
        return sum(self.kinds(kernels))

    def _last_product(self, choice: Choice) -> Kernels:
        part, model = choice.slice(self.workload), self.workload.model
        dtype = NARROW.get(part.precision, part.precision)
        return (kernel("gemm", dtype, m=part.rows, n=model.hidden, k=model.ffn // part.tp),)

    @property
    def slowdown(self) -> float:
        """Share of compute speed that is lost while a collective runs on the same device."""
        return max(device.overlap_slowdown for device in self.cluster.devices)

    def _all(self, choice: Choice, collectives: list[Named]) -> float:
        return sum(self.collective(choice, op) for _, op in collectives)

    def collective(self, choice: Choice, op: Collective) -> float:
        """Seconds without contention, among the first ranks that take part in it."""
        if _members(choice, op)[0] == 1:
            return 0.0
        demand = self._demand(choice, op)
        return op.repeat * (demand.latency_s + demand.volume_B / demand.cap_B_per_s)

    def _demand(self, choice: Choice, op: Collective) -> Demand:
        """Of the first ranks that take part in a collective."""
        size, stride = _members(choice, op)
        key = (op.kind, op.nbytes, op.dtype, size, stride)
        if key not in self._demands:
            self._demands[key] = self.cost.demands(op, _ranks(size, stride)[None, :])[0]
        return self._demands[key]

    def send(self, choice: Choice) -> tuple[float]:
        """Seconds of a microbatch from the first rank to its successor in the pipeline."""
        if choice.pp == 1:
            return (0.0,)
        nbytes = ChunkSizes(self.workload, choice).boundary_B
        following = choice.n_ranks // choice.pp
        if (nbytes, following) not in self._demands:
            op = Transfer(source=GROUP, target=stage_name(1), nbytes=nbytes)
            self._demands[nbytes, following] = self.cost.demands(op, _ranks(2, following)[None, :])[0]
        demand = self._demands[nbytes, following]
        return (demand.latency_s + demand.volume_B / demand.cap_B_per_s,)

    def replicas(self, choice: Choice) -> tuple[float, float, float, float, float]:
        """Seconds to gather the parameters of the largest stage, to reduce its gradients and the last bucket of them, which no
        computing hides; the share of its rate that each keeps beside the other; and seconds of its optimizer."""
        elements = self._largest_stage(choice)
        step = self.seconds(optimizer(GROUP, elements, self.workload, choice).kernels)
        if choice.shards == 1:
            return 0.0, 0.0, 0.0, 1.0, step
        width_B = WIDTH_B[memory.gradient_dtype(self.workload.precision, master_weights=choice.master_weights)]
        layers = self.workload.model.layers // choice.pp
        buckets = max(1, layers if choice.zero == 3 and self.by_layer else round(elements * width_B / choice.bucket_B))
        each = -(-elements // buckets)
        gathering = gather_parameters(GROUP, each, self.workload, choice)
        reducing = reduce_gradients(GROUP, each, self.workload, choice)
        gather, reduce = self.collective(choice, gathering), self.collective(choice, reducing)
        together = self._together(choice, gathering, reducing) if choice.zero == 3 else 1.0
        return buckets * gather, buckets * reduce, reduce, together, step

    def _together(self, choice: Choice, a: Collective, b: Collective) -> float:
        """Share of the rate alone that two collectives of the same ranks keep at the same time, where a port is full."""
        found = [self._demand(choice, op) for op in (a, b)]
        members = _ranks(*_members(choice, a))
        fabric = self.cluster.fabric
        near, far = (
            fabric.capacity_B_per_s[ports(members)[0]].min() for ports in (fabric.intra_ports, fabric.net_ports)
        )
        asked_near = sum(d.cap_B_per_s * d.node_weight for d in found)
        asked_far = sum(d.cap_B_per_s * d.net_weight for d in found)
        return float(min(1.0, *(port / asked for port, asked in ((near, asked_near), (far, asked_far)) if asked > 0)))

    def step_kernels(self, choice: Choice) -> Kernels:
        """What `replicas` needs prices of."""
        return optimizer(GROUP, self._largest_stage(choice), self.workload, choice).kernels

    def _largest_stage(self, choice: Choice) -> int:
        """Parameters on one rank of it, before ZeRO."""
        layer, embed, head, routed = self.elements(choice.tp, choice.pp)
        ends = embed + head if choice.pp == 1 else max(embed, head)
        return (layer + routed) * self.workload.model.layers // choice.pp + ends

    def elements(self, tp: int, pp: int) -> tuple[int, int, int, int]:
        """Parameters on one rank of a layer, of the first end and of the last, and of a layer's routed experts, before ZeRO."""
        copied = self.workload.model.tied_embeddings and pp > 1
        if (tp, copied) not in self._elements:
            self._elements[tp, copied] = self._count(tp, copied)
        return *self._elements[tp, copied], 0

    def _count(self, tp: int, copied: bool) -> tuple[int, int, int]:
        """Parameters on one rank of a layer and of both ends; the last may have a copy of the embedding."""
        model = self.workload.model
        first, last = end_parameters(model)
        if copied:
            last = [*last, (EMBEDDING, (model.vocab, model.hidden))]
        layer, embed, head = (
            memory.local_elements(listed, tp, vocab_parallel=tp > 1)
            for listed in (layer_parameters(model, 0), first, last)
        )
        return layer, embed, head

    def activations(self, choice: Choice) -> tuple[float, float, float, float]:
        """Bytes that a layer keeps of a microbatch, that recomputing one needs for a while, that the head keeps, and that a layer
        has where nothing is recomputed."""
        model, part = self.workload.model, choice.slice(self.workload)
        whole = memory.layer_activation_B(model, part, "none")
        kept = memory.layer_activation_B(model, part, choice.recompute)
        return kept, whole if choice.recompute == "full" else 0.0, memory.head_activation_B(model, part), whole


def _what_matters(choice: Choice, rows: int, piece: Piece, *, forward: bool) -> tuple[int | str, ...]:
    """What the cost of a pass depends on: at the ends of the model tokens and tp, in layers also how attention is split, and
    backward what is computed again."""
    if piece is not LAYER:
        return choice.tp, rows
    return choice.tp, choice.cp, choice.microbatch, "" if forward else choice.recompute


def _ranks(size: int, stride: int) -> NDArray[np.int64]:
    """(size,) the first ranks of a group."""
    return stride * np.arange(size, dtype=np.int64)


def _members(choice: Choice, op: Collective) -> tuple[int, int]:
    """How many ranks of the first stage take part, and how far apart they are; tp is the fastest axis, then cp, then dp."""
    sizes = {"tp": (choice.tp, 1), "cp": (choice.cp, choice.tp), "dp": (choice.dp, choice.cp * choice.tp)}
    taking = [sizes[axis] for axis in op.along if sizes[axis][0] > 1]
    if not taking:
        return 1, 1
    size = 1
    for n, _ in taking:
        size *= n
    return size, min(stride for _, stride in taking)
