"""How a training job is spread over ranks: the choice itself, what follows from it, and what can be wrong with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from costmodels.memory import gradient_dtype, storage_dtype
from costmodels.transformer_kernels import AttentionKernel, ContextExchange, Recompute, Slice
from simcore.errors import Problem
from simcore.plan import Group
from simcore.workloads.transformer_training import TransformerTraining

Detail = Literal["layer", "chunk"]
MOST_PASSES = 1_000_000
"""A plan lists every pass of every microbatch; a list of millions is a mistake in some size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Degrees of parallelism and everything else that a planner of training decides.

    `dp` replicas, each on `tp` x `pp` x `cp` ranks; `vpp` chunks of layers on each pipeline stage; `microbatch` sequences at
    a time.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    vpp: int = 1
    microbatch: int = 1
    zero: int = 0
    recompute: Recompute = "none"
    sequence_parallel: bool = False
    overlap: bool = True
    overlap_tensor: bool = True
    overlap_param_gather: bool = False
    ends_count_as_layers: bool = False
    attention: AttentionKernel = "flash"
    context_exchange: ContextExchange = "ring"
    master_weights: bool = False
    detail: Detail = "chunk"
    first_bucket_B: float = 1024.0**2
    bucket_B: float = 25 * 1024.0**2

    @property
    def n_ranks(self) -> int:
        return self.dp * self.tp * self.pp * self.cp

    @property
    def shards(self) -> int:
        """Ranks that hold the same parameters before ZeRO divides them, and that sum their gradients."""
        return self.dp * self.cp

    @property
    def schedule(self) -> str:
        return "interleaved" if self.vpp > 1 else "1f1b"

    @property
    def vocab_parallel(self) -> bool:
        """Whether embedding and head are split over tp, as Megatron-LM does and plain Hugging Face modules do not."""
        return self.tp > 1 and self.detail == "chunk"

    def microbatches(self, workload: TransformerTraining) -> int:
        """Microbatches that each replica runs in an iteration."""
        return workload.global_batch // (self.dp * self.microbatch)

    def slice(self, workload: TransformerTraining) -> Slice:
        """What one rank computes of one microbatch."""
        return Slice(
            sequences=self.microbatch,
            seq_len=workload.seq_len,
            precision=workload.precision,
            tp=self.tp,
            cp=self.cp,
            sequence_parallel=self.sequence_parallel,
            vocab_parallel=self.vocab_parallel,
            fused_projections=self.detail == "chunk",
            attention=self.attention,
            context_exchange=self.context_exchange,
            dropout=workload.dropout,
        )

    def decisions(self, workload: TransformerTraining) -> dict[str, Any]:
        """The choice as the plan's `decisions`."""
        return {
            "parallelism": {"dp": self.dp, "tp": self.tp, "pp": self.pp, "cp": self.cp, "vpp": self.vpp},
            "zero": self.zero,
            "microbatch": self.microbatch,
            "microbatches": self.microbatches(workload),
            "schedule": self.schedule,
            "recompute": self.recompute,
            "sequence_parallel": self.sequence_parallel,
            "vocab_parallel": self.vocab_parallel,
            "ends_count_as_layers": self.ends_count_as_layers,
            "attention": self.attention,
            "context_exchange": self.context_exchange,
            "precision": workload.precision,
            "weight_dtype": storage_dtype(workload.precision),
            "gradient_dtype": gradient_dtype(workload.precision, master_weights=self.master_weights),
            "master_weights": self.master_weights,
            "optimizer": "adamw",
            "overlap": self.overlap,
            "overlap_tensor": self.overlap_tensor,
            "overlap_param_gather": self.overlap_param_gather,
            "detail": self.detail,
        }

    def groups(self) -> dict[str, Group]:
        """One group for each pipeline stage, with axes dp, cp and tp; tp is the fastest of them, pp the slowest."""
        axes = (("dp", self.dp, self.cp * self.tp), ("cp", self.cp, self.tp), ("tp", self.tp, 1))
        each = self.dp * self.cp * self.tp
        return {stage_name(s): Group(axes=axes, offset=s * each) for s in range(self.pp)}


def stage_name(stage: int) -> str:
    """Name of a pipeline stage's group."""
    return f"stage{stage}"


def problems_of(choice: Choice, workload: TransformerTraining, n_ranks: int) -> list[Problem]:
    """Everything that keeps `choice` from running on `n_ranks` ranks, all at once."""
    return [
        *_ranks(choice, n_ranks),
        *_tensor(choice, workload),
        *_pipeline(choice, workload),
        *_context(choice, workload),
        *_batch(choice, workload),
        *_details(choice),
    ]


def _ranks(choice: Choice, n_ranks: int) -> Iterator[Problem]:
    if choice.n_ranks != n_ranks:
        product = f"dp {choice.dp} x tp {choice.tp} x pp {choice.pp} x cp {choice.cp} = {choice.n_ranks} ranks"
        yield Problem(
            "planner.dp", product, f"{n_ranks}, the ranks of the cluster", "Leave `dp` out to fill the cluster."
        )


def _tensor(choice: Choice, workload: TransformerTraining) -> Iterator[Problem]:
    model, tp = workload.model, choice.tp
    for size, what in ((model.heads, "heads"), (model.ffn, "columns of the MLP")):
        if size % tp:
            yield Problem("planner.tp", str(tp), f"a divisor of the {size} {what}")
    if model.kv_heads % tp and tp % model.kv_heads:
        yield Problem(
            "planner.tp", str(tp), f"a divisor or a multiple of the {model.kv_heads} heads of keys and values"
        )
    if choice.sequence_parallel and (workload.seq_len * choice.microbatch // choice.cp) % tp:
        yield Problem("planner.tp", str(tp), "a divisor of the tokens of a microbatch, for sequence parallelism")


def _pipeline(choice: Choice, workload: TransformerTraining) -> Iterator[Problem]:
    pp, vpp, layers = choice.pp, choice.vpp, workload.model.layers
    if vpp > 1 and pp == 1:
        yield Problem("planner.vpp", str(vpp), "1 where pp is 1", "Interleaving needs a pipeline.")
    places = layers + 2 if choice.ends_count_as_layers else layers
    if places % (pp * vpp):
        counted = f"{places} layers" + (" (embedding and head counted)" if choice.ends_count_as_layers else "")
        yield Problem("planner.pp", f"pp {pp} x vpp {vpp} = {pp * vpp} chunks", f"a divisor of the {counted}")
    if choice.ends_count_as_layers and pp == 1:
        yield Problem("planner.ends_count_as_layers", "true", "false where pp is 1")
    microbatches = choice.microbatches(workload)
    if vpp > 1 and microbatches > pp and microbatches % pp:
        yield Problem(
            "planner.vpp",
            str(vpp),
            f"1, because the {microbatches} microbatches of a replica are no multiple of pp {pp}",
            "Stages of an interleaved pipeline take microbatches in groups of pp.",
        )


def _context(choice: Choice, workload: TransformerTraining) -> Iterator[Problem]:
    cp, seq_len = choice.cp, workload.seq_len
    if cp > 1 and seq_len % (4 * cp):
        yield Problem("planner.cp", str(cp), f"such that 4 x cp divides the sequence of {seq_len} tokens")
    if cp > 1 and choice.attention == "unfused":
        yield Problem("planner.attention", "unfused", "flash where cp is above 1")


def _batch(choice: Choice, workload: TransformerTraining) -> Iterator[Problem]:
    at_once = choice.dp * choice.microbatch
    if workload.global_batch % at_once:
        yield Problem(
            "planner.microbatch",
            f"dp {choice.dp} x microbatch {choice.microbatch} = {at_once} sequences at a time",
            f"a divisor of the {workload.global_batch} sequences of `workload.global_batch`",
        )
    parts = choice.pp * choice.vpp if choice.detail == "chunk" and choice.zero < 3 else workload.model.layers
    microbatches = choice.microbatches(workload)
    if 2 * microbatches * parts > MOST_PASSES:
        yield Problem(
            "planner.microbatch",
            f"{microbatches} microbatches through {parts} parts",
            f"at most {MOST_PASSES} passes in an iteration",
            "Take larger microbatches or a smaller global_batch.",
        )


def _details(choice: Choice) -> Iterator[Problem]:
    if choice.detail == "layer":
        for name, given, allowed in (
            ("pp", choice.pp, 1),
            ("cp", choice.cp, 1),
            ("sequence_parallel", choice.sequence_parallel, False),
        ):
            if given != allowed:
                yield Problem("planner.detail", f"layer with {name} {given}", f"chunk, or {name} {allowed}")
        if choice.recompute == "selective":
            yield Problem("planner.recompute", "selective with detail layer", "none or full, or detail chunk")
    if choice.sequence_parallel and choice.tp == 1:
        yield Problem("planner.sequence_parallel", "true", "false where tp is 1")
    if choice.overlap_param_gather and choice.zero not in (1, 2):
        yield Problem("planner.overlap_param_gather", "true", f"false with zero {choice.zero}; true with zero 1 or 2")
    if choice.overlap_param_gather and choice.detail == "layer":
        yield Problem("planner.overlap_param_gather", "true with detail layer", "false, or detail chunk")
