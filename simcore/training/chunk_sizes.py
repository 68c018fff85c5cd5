"""Ops and bytes of the pieces that pipeline chunks are made of: runs of layers, with or without embedding and head."""

from dataclasses import dataclass, field, replace
from functools import cached_property

from costmodels import memory
from costmodels.kernels import WIDTH_B, kernel
from costmodels.transformer import EMBEDDING, Parameter, end_parameters, layer_parameters
from costmodels.transformer_kernels import (
    Kernels,
    Slice,
    Work,
    attention_block,
    attention_core,
    embedding,
    head,
    mlp_block,
)
from simcore.plan import Collective, CollectiveKind, Compute
from simcore.training.choice import Choice, stage_name
from simcore.training.schedule import layers_of_chunks
from simcore.workloads.transformer_training import TransformerTraining

Named = tuple[str, Collective]
"""A collective with what its task is called after the piece's own name."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive layers of a chunk, with what stands at the ends of the model."""

    layers: range
    embed: bool = False
    head: bool = False

    def split(self) -> list[tuple[str, "Piece"]]:
        """Its layers and ends one by one, named, in forward order."""
        parts = [("embed", Piece(range(0), embed=True))] if self.embed else []
        parts += [(f"layer{i}", Piece(range(i, i + 1))) for i in self.layers]
        return [*parts, ("head", Piece(range(0), head=True))] if self.head else parts

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """Equal for pieces that do equal work."""
        return (len(self.layers), self.embed, self.head)


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceOps:
    """What one pass through a piece does: `before`, then `compute` with `beside` next to it, then `core` with `beside_core` next to
    it (attention and the exchange that a ring hides behind it), then `after`."""

    compute: Compute
    core: Compute | None = None
    before: list[Named] = field(default_factory=list)
    beside: list[Named] = field(default_factory=list)
    beside_core: list[Named] = field(default_factory=list)
    after: list[Named] = field(default_factory=list)


@dataclass(frozen=True)
class ChunkSizes:
    """Everything about pieces that does not depend on the microbatch."""

    workload: TransformerTraining
    choice: Choice

    @cached_property
    def slice(self) -> Slice:
        return self.choice.slice(self.workload)

    @cached_property
    def chunks(self) -> list[list[Piece]]:
        """By stage and chunk."""
        choice = self.choice
        runs = layers_of_chunks(
            self.workload.model.layers, choice.pp, choice.vpp, ends_count=choice.ends_count_as_layers
        )
        pieces = [[Piece(run) for run in stage] for stage in runs]
        pieces[0][0] = replace(pieces[0][0], embed=True)
        pieces[-1][-1] = replace(pieces[-1][-1], head=True)
        return pieces

    def parameters(self, piece: Piece) -> list[Parameter]:
        """In registration order. Where the ends of a tied model are on two stages, the last one has a copy of the embedding."""
        model = self.workload.model
        first, last = end_parameters(model)
        found = list(first) if piece.embed else []
        for i in piece.layers:
            found += layer_parameters(model, i)
        if piece.head:
            found += last
            if model.tied_embeddings and self.choice.pp > 1:
                found.append((EMBEDDING, (model.vocab, model.hidden)))
        return found

    def elements(self, piece: Piece) -> int:
        """Parameters of a piece on one rank before ZeRO."""
        return memory.local_elements(self.parameters(piece), self.choice.tp, vocab_parallel=self.choice.vocab_parallel)

    def activation_B(self, piece: Piece) -> float:
        """Bytes that the piece keeps of one microbatch until its backward pass."""
        model, part = self.workload.model, self.slice
        kept = len(piece.layers) * memory.layer_activation_B(model, part, self.choice.recompute)
        if piece.embed:
            kept += memory.embedding_activation_B(model, part)
        if piece.head:
            kept += memory.head_activation_B(model, part)
        return kept

    @cached_property
    def hidden_B(self) -> int:
        """Hidden states of a microbatch, of the tokens that one context parallel rank has."""
        return int(WIDTH_B[self.slice.dtype] * self.slice.rows * self.workload.model.hidden)

    @property
    def boundary_B(self) -> int:
        """What a rank sends to the next stage; with sequence parallelism its share."""
        return self.hidden_B // (self.choice.tp if self.choice.sequence_parallel else 1)

    @cached_property
    def _parts(self) -> tuple[Work, Work]:
        """A layer without the core of attention, and the core."""
        model, part, mode = self.workload.model, self.slice, self.choice.recompute
        around = attention_block(model, part, mode) + mlp_block(model, part, mode)
        return around, attention_core(model, part, mode)

    def ops(self, stage: int, piece: Piece, *, forward: bool, accumulates: bool = True) -> PieceOps:
        """The ops of one pass through a piece on a stage; a backward pass `accumulates` its gradients."""
        around, core = self._parts
        model, n = self.workload.model, len(piece.layers)
        ring = self.choice.cp > 1 and self.choice.context_exchange == "ring" and n > 0
        work = around * n if ring else (around + core) * n
        if piece.embed:
            work = embedding(model, self.slice) + work
        if piece.head:
            work += head(model, self.slice)
        exposed, hidden = tensor_collectives(piece, self.choice, forward=forward)
        exchange = self._exchange(stage, n, forward=forward) if n else []
        added = self.accumulation(piece) if accumulates and not forward else ()
        return PieceOps(
            compute=_compute(stage, work.forward if forward else work.backward + added),
            core=_compute(stage, (core * n).forward if forward else (core * n).backward) if ring else None,
            before=[] if ring else exchange,
            beside=self._tensor(stage, hidden, "tp_overlapped"),
            beside_core=exchange if ring else [],
            after=self._tensor(stage, exposed, "tp"),
        )

    def accumulation(self, piece: Piece) -> Kernels:
        """Every microbatch adds its gradients to a buffer, as Megatron-LM's `main_grad`; with ZeRO 3 to the buffer of a shard.

        Where sums are wider than weights, the product that makes the gradient reads and writes the sum itself.
        """
        elements = self.elements(piece) // (self.choice.shards if self.choice.zero == 3 else 1)
        precision = self.workload.precision
        dtype = memory.gradient_dtype(precision, master_weights=self.choice.master_weights)
        if not elements:
            return ()
        if WIDTH_B[dtype] > WIDTH_B[memory.storage_dtype(precision)]:
            return (kernel("copy", dtype, elements=elements),)
        return (kernel("add", dtype, rows=1, cols=elements),)

    def _tensor(self, stage: int, counts: dict[CollectiveKind, int], name: str) -> list[Named]:
        """Tensor parallelism's collectives over hidden states; the first kind has the plain name."""
        found: list[Named] = []
        for kind, repeat in counts.items():
            op = Collective(
                kind=kind,
                group=stage_name(stage),
                along=("tp",),
                nbytes=self.hidden_B,
                dtype=self.slice.dtype,
                repeat=repeat,
                stream=name,
            )
            found.append((f"{name}/{kind}" if found else name, op))
        return found

    def _exchange(self, stage: int, layers: int, *, forward: bool) -> list[Named]:
        """Context parallelism's exchange of keys and values; backward they travel again, and their gradients come back.

        A ring moves the same bytes over each port as an all-gather, so it is one.
        """
        if self.choice.cp == 1:
            return []
        model, part = self.workload.model, self.slice
        width = WIDTH_B[part.dtype] * part.sequences * part.seq_len
        nbytes = int(2 * width * part.kv_heads(model) * model.head_dim)
        again = 2 if not forward and self.choice.recompute == "full" else 1
        kinds: dict[CollectiveKind, int] = {"all_gather": again * layers}
        if not forward:
            kinds["reduce_scatter"] = layers
        return [
            (
                f"cp/{kind}" if kind != "all_gather" else "cp",
                Collective(
                    kind=kind,
                    group=stage_name(stage),
                    along=("cp",),
                    nbytes=nbytes,
                    dtype=part.dtype,
                    repeat=repeat,
                    stream="cp",
                ),
            )
            for kind, repeat in kinds.items()
        ]


def _compute(stage: int, kernels: Kernels) -> Compute:
    return Compute(group=stage_name(stage), kernels=kernels)


Counts = dict[CollectiveKind, int]


def tensor_collectives(piece: Piece, choice: Choice, *, forward: bool) -> tuple[Counts, Counts]:
    """How often each tensor parallel collective runs in a pass: those that compute waits for, and those beside it.

    Forward, each half of a layer sums its output; with sequence parallelism it gathers its input and scatters the sum
    (Korthikanti et al. 2022, section 4.2.2). Backward, sums of input gradients hide behind the products that make weight
    gradients, and so does gathering the inputs again; only gathering output gradients is waited for. Embedding and head, where
    they are split, are split by vocabulary. Full recomputation repeats the forward ones. Without `overlap_tensor` nothing hides.
    """
    if choice.tp == 1:
        return {}, {}
    halves, split = 2 * len(piece.layers), choice.vocab_parallel
    first, last = int(piece.embed and split), int(piece.head and split)
    repeated = halves if choice.recompute == "full" else 0
    exposed: Counts
    hidden: Counts = {}
    if not choice.sequence_parallel:
        exposed = {"all_reduce": halves + first if forward else repeated}
        if not forward:
            hidden = {"all_reduce": halves + last}
    elif forward:
        exposed = {"all_gather": halves + last, "reduce_scatter": halves + first}
    else:
        exposed = {"all_gather": halves + first + repeated, "reduce_scatter": repeated}
        hidden = {"all_gather": halves + last, "reduce_scatter": halves + last}
    if not choice.overlap_tensor:
        exposed, hidden = {k: exposed.get(k, 0) + hidden.get(k, 0) for k in {**exposed, **hidden}}, {}
    return _present(exposed), _present(hidden)


def _present(counts: Counts) -> Counts:
    return {kind: count for kind, count in counts.items() if count}
