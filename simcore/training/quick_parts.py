"""What a layer, the ends of the model, and replicas' communication cost: the few numbers that many configurations share."""

from dataclasses import dataclass, field

import numpy as np

from costmodels import memory
from costmodels.kernels import WIDTH_B, Kernel, kernel
from costmodels.transformer import EMBEDDING, end_parameters, layer_parameters
from costmodels.transformer_kernels import NARROW, Kernels
from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.plan import Collective, Compute, Transfer
from simcore.training.choice import Choice, stage_name
from simcore.training.chunk_sizes import ChunkSizes, Named, Piece, PieceOps
from simcore.training.ops import gather_parameters, optimizer, reduce_gradients
from simcore.training.sustained import kind_of
from simcore.workloads.transformer_training import TransformerTraining

LAYER, EMBED, HEAD = Piece(range(1)), Piece(range(0), embed=True), Piece(range(0), head=True)
GROUP = stage_name(0)
PASSES = ((LAYER, True), (LAYER, False), (EMBED, True), (EMBED, False), (HEAD, True), (HEAD, False))
"""Pieces, and whether forward, in the order of `Parts.passes`."""

SPENT = ("products", "narrow", "attention", "streaming", "kernels", "before", "beside", "core", "exchange", "after")
"""What a pass is made of: seconds of kernels by kind (`narrow`: products of fewer than 16 bits), how many kernels are launched,
and seconds of what stands before, beside, and after them; `core` is attention that has `exchange` beside it."""


@dataclass(frozen=True)
class Parts:
    """Costs of parts, of one workload on one cluster.

    `early_stop`: recomputing a layer ends with the last activation that is needed, before its last product, as PyTorch's
    non-reentrant checkpoints do.
    """

    workload: TransformerTraining
    cluster: Cluster
    cost: Costs
    early_stop: bool = False
    ep: int = 1
    _spent: dict[object, list[float]] = field(default_factory=dict, repr=False, compare=False)
    _collectives: dict[object, float] = field(default_factory=dict, repr=False, compare=False)

    def passes(self, choice: Choice) -> tuple[float, ...]:
        """The numbers of `SPENT` for each of `PASSES`, one after the other."""
        sizes = ChunkSizes(self.workload, choice)
        found: list[float] = []
        for piece, forward in PASSES:
            key = (piece.kind, forward, *_what_matters(choice, sizes, piece, forward=forward))
            if key not in self._spent:
                self._spent[key] = self.spent(choice, sizes.ops(0, piece, forward=forward))
            found += self._spent[key]
        if self.early_stop and choice.recompute == "full":
            for i, seconds in enumerate(self.kinds(self._last_product(choice))):
                found[len(SPENT) + i] -= seconds
        return tuple(found)

    def spent(self, choice: Choice, ops: PieceOps) -> list[float]:
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

    def kinds(self, kernels: Kernels) -> list[float]:
        """Seconds of products, of narrow ones, of attention and of all others."""
        by_kind: dict[str, list[Kernel]] = {kind: [] for kind in SPENT[:4]}
        for k in kernels:
            by_kind[kind_of(k)].append(k)
        return [self.seconds(tuple(found)) for found in by_kind.values()]

    def seconds(self, kernels: Kernels) -> float:
        """On the slowest device, for which all others wait."""
        return self.compute(Compute(group=GROUP, kernels=kernels)) if kernels else 0.0

    def _last_product(self, choice: Choice) -> Kernels:
        part, model = choice.slice(self.workload), self.workload.model
        dtype = NARROW.get(part.precision, part.precision)
        return (kernel("gemm", dtype, m=part.rows, n=model.hidden, k=model.ffn // part.tp),)

    @property
    def slowdown(self) -> float:
        """Share of compute speed that is lost while a collective runs on the same device."""
        return max(device.overlap_slowdown for device in self.cluster.devices)

    def compute(self, op: Compute) -> float:
        """Seconds on the slowest device, for which all others wait."""
        return max(self.cost.compute(op, device).seconds for device in self.cluster.devices)

    def _all(self, choice: Choice, collectives: list[Named]) -> float:
        return sum(self.collective(choice, op) for _, op in collectives)

    def collective(self, choice: Choice, op: Collective) -> float:
        """Seconds without contention, among the first ranks that take part in it."""
        size, stride = _members(choice, op)
        if size == 1:
            return 0.0
        key = (op.kind, op.nbytes, op.dtype, size, stride)
        if key not in self._collectives:
            demand = self.cost.demands(op, stride * np.arange(size)[None, :])[0]
            self._collectives[key] = demand.latency_s + demand.volume_B / demand.cap_B_per_s
        return op.repeat * self._collectives[key]

    def send(self, choice: Choice) -> tuple[float]:
        """Seconds of a microbatch from the first rank to its successor in the pipeline."""
        if choice.pp == 1:
            return (0.0,)
        nbytes = ChunkSizes(self.workload, choice).boundary_B
        op = Transfer(source=GROUP, target=stage_name(1), nbytes=nbytes)
        first = [group.ranks().reshape(-1)[0] for group in list(choice.groups().values())[:2]]
        demand = self.cost.demands(op, np.array([first], dtype=np.int64))[0]
        return (demand.latency_s + demand.volume_B / demand.cap_B_per_s,)

    def replicas(self, choice: Choice) -> tuple[float, float, float, float]:
        """Seconds to gather the parameters of the largest stage, to reduce its gradients and the last bucket of them, which no
        computing hides, and of its optimizer."""
        layer, embed, head, routed = self.elements(choice.tp, choice.pp)
        ends = embed + head if choice.pp == 1 else max(embed, head)
        elements = (layer + routed) * self.workload.model.layers // choice.pp + ends
        step = self.compute(optimizer(GROUP, elements, self.workload, choice))
        if choice.shards == 1:
            return 0.0, 0.0, 0.0, step
        width_B = WIDTH_B[memory.gradient_dtype(self.workload.precision, master_weights=choice.master_weights)]
        buckets = max(1, round(elements * width_B / choice.bucket_B))
        each = -(-elements // buckets)
        gather = self.collective(choice, gather_parameters(GROUP, each, self.workload, choice))
        reduce = self.collective(choice, reduce_gradients(GROUP, each, self.workload, choice))
        return buckets * gather, buckets * reduce, reduce, step

    def elements(self, tp: int, pp: int) -> tuple[int, int, int, int]:
        """Parameters on one rank of a layer, of the first end and of the last, and of a layer's routed experts, before ZeRO."""
        model = self.workload.model
        first, last = end_parameters(model)
        if model.tied_embeddings and pp > 1:
            last = [*last, (EMBEDDING, (model.vocab, model.hidden))]
        layer, embed, head = (
            memory.local_elements(listed, tp, vocab_parallel=tp > 1)
            for listed in (layer_parameters(model, 0), first, last)
        )
        return layer, embed, head, 0

    def activations(self, choice: Choice) -> tuple[float, float, float, float]:
        """Bytes that a layer keeps of a microbatch, that recomputing one needs for a while, that the head keeps, and that a layer
        has where nothing is recomputed."""
        model, part = self.workload.model, choice.slice(self.workload)
        whole = memory.layer_activation_B(model, part, "none")
        kept = memory.layer_activation_B(model, part, choice.recompute)
        return kept, whole if choice.recompute == "full" else 0.0, memory.head_activation_B(model, part), whole


def _what_matters(choice: Choice, sizes: ChunkSizes, piece: Piece, *, forward: bool) -> tuple[int | str, ...]:
    """What the cost of a pass depends on: at the ends of the model tokens and tp, in layers also how attention is split, and
    backward what is computed again."""
    if piece is not LAYER:
        return choice.tp, sizes.slice.rows
    return choice.tp, choice.cp, choice.microbatch, "" if forward else choice.recompute


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
