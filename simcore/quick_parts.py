"""What a layer, the ends of the model, and replicas' communication cost: the few numbers that many configurations share."""

from dataclasses import dataclass

import numpy as np

from costmodels import memory
from costmodels.kernels import WIDTH_B
from costmodels.transformer import EMBEDDING, end_parameters, layer_parameters
from simcore.chunk_sizes import ChunkSizes, Piece, PieceOps
from simcore.cluster import Cluster
from simcore.placement import Costs
from simcore.plan import Collective, Compute, Transfer
from simcore.training import Choice, stage_name
from simcore.training_ops import gather_parameters, optimizer, reduce_gradients
from simcore.workloads.transformer_training import TransformerTraining

LAYER, EMBED, HEAD = Piece(range(1)), Piece(range(0), embed=True), Piece(range(0), head=True)
GROUP = stage_name(0)


@dataclass(frozen=True)
class Parts:
    """Costs of parts, of one workload on one cluster."""

    workload: TransformerTraining
    cluster: Cluster
    cost: Costs

    def passes(self, choice: Choice) -> tuple[float, float, float, float]:
        """Seconds of a layer forward and backward, of the embedding and of the head both ways."""
        sizes = ChunkSizes(self.workload, choice)
        forward, backward = (self._pass(choice, sizes.ops(0, LAYER, forward=way)) for way in (True, False))
        embed, head = (
            sum(self._pass(choice, sizes.ops(0, piece, forward=way)) for way in (True, False))
            for piece in (EMBED, HEAD)
        )
        return forward, backward, embed, head

    def _pass(self, choice: Choice, ops: PieceOps) -> float:
        """Tasks of a piece as they follow and hide each other in a plan."""
        before, beside, exchange, after = (
            sum(self.collective(choice, op) for _, op in part)
            for part in (ops.before, ops.beside, ops.beside_core, ops.after)
        )
        core = self._together(self.compute(ops.core), exchange) if ops.core is not None else 0.0
        return before + self._together(self.compute(ops.compute), beside) + core + after

    def _together(self, computing: float, communicating: float) -> float:
        """Both at once: the longer of them, and what communication takes from the computing beside it."""
        return max(computing, communicating) + self.slowdown * min(computing, communicating)

    @property
    def slowdown(self) -> float:
        """Share of compute speed that is lost while a collective runs on the same device."""
        return max(device.overlap_slowdown for device in self.cluster.devices)

    def compute(self, op: Compute) -> float:
        """Seconds on the slowest device, for which all others wait."""
        return max(self.cost.compute(op, device).seconds for device in self.cluster.devices)

    def collective(self, choice: Choice, op: Collective) -> float:
        """Seconds without contention, among the first ranks that take part in it."""
        members = choice.groups()[GROUP].instances(op.along)[:1]
        if members.shape[1] == 1:
            return 0.0
        demand = self.cost.demands(op, members)[0]
        return op.repeat * (demand.latency_s + demand.volume_B / demand.cap_B_per_s)

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
        layer, embed, head = self.elements(choice.tp, choice.pp)
        ends = embed + head if choice.pp == 1 else max(embed, head)
        elements = layer * self.workload.model.layers // choice.pp + ends
        step = self.compute(optimizer(GROUP, elements, self.workload, choice))
        if choice.shards == 1:
            return 0.0, 0.0, 0.0, step
        width_B = WIDTH_B[memory.gradient_dtype(self.workload.precision, master_weights=choice.master_weights)]
        buckets = max(1, round(elements * width_B / choice.bucket_B))
        each = -(-elements // buckets)
        gather = self.collective(choice, gather_parameters(GROUP, each, self.workload, choice))
        reduce = self.collective(choice, reduce_gradients(GROUP, each, self.workload, choice))
        return buckets * gather, buckets * reduce, reduce, step

    def elements(self, tp: int, pp: int) -> tuple[int, int, int]:
        """Parameters on one rank of a layer, of the first end and of the last, before ZeRO."""
        model = self.workload.model
        first, last = end_parameters(model)
        if model.tied_embeddings and pp > 1:
            last = [*last, (EMBEDDING, (model.vocab, model.hidden))]
        layer, embed, head = (
            memory.local_elements(listed, tp, vocab_parallel=tp > 1)
            for listed in (layer_parameters(model, 0), first, last)
        )
        return layer, embed, head

    def activations(self, choice: Choice) -> tuple[float, float, float]:
        """Bytes that a layer keeps of a microbatch, that recomputing one needs for a while, and that the head keeps."""
        model, part = self.workload.model, choice.slice(self.workload)
        again = memory.layer_activation_B(model, part, "none") if choice.recompute == "full" else 0.0
        kept = memory.layer_activation_B(model, part, choice.recompute)
        return kept, again, memory.head_activation_B(model, part)
