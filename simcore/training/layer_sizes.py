"""Kernels, parameters and activations of the parts that a plan with a task for each layer is made of."""

from dataclasses import asdict, dataclass
from functools import cached_property

from costmodels import memory
from costmodels.kernels import WIDTH_B, kernel
from costmodels.transformer import EMBEDDING, POSITIONS, Parameter, layer_parameters, parameters
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
from simcore.buckets import assign
from simcore.plan import Collective
from simcore.training.choice import Choice, stage_name
from simcore.workloads.transformer_training import TransformerTraining

EMBED, HEAD, LAYER, ATTENTION, MLP, ROOT = "embed", "head", "layer", "attn", "mlp", "root"


def part_of(name: str) -> str:
    """Where a parameter's gradient comes from: embed, head, or a layer's half such as `3/attn`."""
    if name in (EMBEDDING, POSITIONS):
        return EMBED
    if not name.startswith("model.layers."):
        return HEAD
    return f"{name.split('.')[2]}/{_half(name)}"


def _half(name: str) -> str:
    return ATTENTION if ".self_attn." in name or ".input_layernorm." in name else MLP


@dataclass(frozen=True)
class LayerSizes:
    """Everything by part: embed, head, layer, its halves attn and mlp, and root (embed and head, FSDP2's root module)."""

    workload: TransformerTraining
    choice: Choice

    @cached_property
    def slice(self) -> Slice:
        return self.choice.slice(self.workload)

    @cached_property
    def work(self) -> dict[str, Work]:
        model, part, mode = self.workload.model, self.slice, self.choice.recompute
        attention = attention_block(model, part, mode) + attention_core(model, part, mode)
        mlp = mlp_block(model, part, mode)
        return {
            EMBED: embedding(model, part),
            HEAD: head(model, part),
            LAYER: attention + mlp,
            ATTENTION: attention,
            MLP: mlp,
        }

    def kernels(self, part: str, *, backward: bool, accumulates: bool) -> Kernels:
        """With `accumulates` gradients are added to those of earlier microbatches: to their shards with ZeRO 2 and 3."""
        found = self.work[part].backward if backward else self.work[part].forward
        elements = self.elements[part] // (self.choice.shards if self.choice.zero >= 2 else 1)
        if accumulates and elements:
            found += (kernel("add", self.gradient_dtype, rows=1, cols=elements),)
        return found + self._repacking(part, backward=backward)

    def _repacking(self, part: str, *, backward: bool) -> Kernels:
        """Copies around the collectives of ZeRO 2 and 3: a unit is one message, its parameters and gradients are not.

        As torch's FSDP2 does: the shard into the message and the message into parameters, gradients into the message and what
        comes back into the shard's. The root unit is gathered before the embedding and scattered after it.
        """
        choice, unit = self.choice, {LAYER: LAYER, EMBED: ROOT}.get(part)
        if choice.zero < 2 or choice.shards == 1 or unit is None:
            return ()
        moved = self.elements[unit] * (choice.shards + 1) // choice.shards
        gathers = 0 if backward and (choice.zero == 2 or unit == ROOT) else 1
        copies = [kernel("copy", self.weight_dtype, elements=moved)] * gathers
        return (*copies, kernel("copy", self.gradient_dtype, elements=moved)) if backward else tuple(copies)

    @cached_property
    def elements(self) -> dict[str, int]:
        """Parameters on one rank before ZeRO."""
        model = self.workload.model
        layer = layer_parameters(model, 0)
        ends = [p for p in parameters(model) if not p[0].startswith("model.layers.")]
        listed: dict[str, list[Parameter]] = {LAYER: layer, ROOT: ends}
        listed |= {half: [p for p in layer if _half(p[0]) == half] for half in (ATTENTION, MLP)}
        listed |= {end: [p for p in ends if part_of(p[0]) == end] for end in (EMBED, HEAD)}
        return {part: memory.local_elements(found, self.choice.tp) for part, found in listed.items()}

    @cached_property
    def total(self) -> int:
        return self.elements[ROOT] + self.workload.model.layers * self.elements[LAYER]

    @cached_property
    def activations(self) -> dict[str, float]:
        """Bytes from forward to backward; with full recompute a layer keeps its input, in its attention half."""
        model, part, mode = self.workload.model, self.slice, self.choice.recompute
        layer = memory.layer_activation_B(model, part, mode)
        mlp = 0.0 if mode == "full" else memory.mlp_activation_B(model, part, mode)
        return {
            EMBED: memory.embedding_activation_B(model, part),
            HEAD: memory.head_activation_B(model, part),
            LAYER: layer,
            ATTENTION: layer - mlp,
            MLP: mlp,
        }

    @property
    def recomputed_B(self) -> float:
        """Activations of one layer while its backward pass runs on what was computed again."""
        return memory.layer_activation_B(self.workload.model, self.slice, "none")

    @property
    def weight_dtype(self) -> str:
        return memory.storage_dtype(self.workload.precision)

    @property
    def gradient_dtype(self) -> str:
        return memory.gradient_dtype(self.workload.precision, master_weights=self.choice.master_weights)

    @cached_property
    def all_reduce(self) -> Collective:
        """Tensor parallelism's, over the output of a layer's half (or, backward, the gradient of its input)."""
        dtype = self.slice.dtype
        nbytes = int(WIDTH_B[dtype] * self.slice.rows * self.workload.model.hidden)
        return Collective(
            kind="all_reduce", group=stage_name(0), along=("tp",), nbytes=nbytes, dtype=dtype, stream="tp"
        )

    @cached_property
    def buckets(self) -> list[list[str]]:
        """Gradients in the order they are reduced; none where ZeRO reduces units instead, or there is nothing to reduce."""
        if self.choice.zero >= 2 or self.choice.shards == 1:
            return []
        width = WIDTH_B[self.gradient_dtype]
        sizes = [(p[0], int(width * memory.local_size(p, self.choice.tp))) for p in parameters(self.workload.model)]
        return assign(sizes, self.choice.first_bucket_B, self.choice.bucket_B)

    @cached_property
    def bucket_elements(self) -> list[int]:
        """Parameters on one rank, by bucket."""
        size = {p[0]: memory.local_size(p, self.choice.tp) for p in parameters(self.workload.model)}
        return [sum(size[name] for name in names) for names in self.buckets]

    def states(self) -> dict[str, float]:
        """Bytes of weights, gradients and optimizer on one rank."""
        choice = self.choice
        return asdict(
            memory.model_states(
                self.total,
                self.workload.precision,
                master_weights=choice.master_weights,
                zero=choice.zero,
                shards=choice.shards,
            )
        )
