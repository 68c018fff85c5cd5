"""Training listed layer by layer, as `real` binds it to modules: data parallel, ZeRO and tensor parallel, one stage.

    m0/fwd/embed, m0/fwd/layer0, ..., m0/fwd/head, m0/bwd/head, m0/bwd/layer3, ..., m0/bwd/embed, grad/s0/bucket0, ..., optimizer/s0

With tp > 1 a layer is attn, attn/all_reduce, mlp, mlp/all_reduce (backward: mlp first). ZeRO 2 and 3 work on units: each layer,
and the rest of the model as root. `real` runs them through FSDP2, whose collectives on a CPU block the thread that computes.
"""

from dataclasses import dataclass, field
from math import prod

from costmodels.kernels import WIDTH_B, Kernel, kernel
from costmodels.layers import attention, embed, head, layer, mlp
from costmodels.memory import head_activations_B, layer_activations_B
from simcore.parallelism import Parallelism
from simcore.plan import Collective, CollectiveKind, Compute
from simcore.training_plan import Listing, Tasks, bucket_names, in_buckets, stage_parameters
from simcore.workloads.transformer_training import Workload

STAGE = "stage0"
ROOT = "root"


@dataclass(slots=True)
class _Builder:
    workload: Workload
    p: Parallelism
    listing: Listing = field(default_factory=Listing)
    last: str | None = None  # what the next computation waits for, beside its stream

    def compute(self, name: str, kernels: tuple[Kernel, ...], activation_B: float = 0.0) -> str:
        self.last = self.listing.add(name, Compute(group=STAGE, kernels=kernels), self.last, activation_B=activation_B)
        return self.last

    def collective(
        self, name: str, kind: CollectiveKind, along: tuple[str, ...], nbytes: float, stream: str, *after: str | None
    ) -> str:
        dtype = self.workload.grad_precision if stream == "grad" else self.workload.precision
        op = Collective(kind=kind, group=STAGE, along=along, nbytes=round(nbytes), dtype=dtype, stream=stream)
        return self.listing.add(name, op, *after)

    def blocking(self, name: str, kind: CollectiveKind, along: tuple[str, ...], nbytes: float, stream: str) -> None:
        """A collective that the computation after it waits for."""
        self.last = self.collective(name, kind, along, nbytes, stream, self.last)


def layer_tasks(workload: Workload, p: Parallelism) -> Tasks:
    """Tasks of one iteration and the buckets of gradients, by stage."""
    b = _Builder(workload, p)
    sizes = _unit_sizes(workload, p)
    buckets = _buckets(workload, p) if p.zero < 2 else []
    ready: dict[str, str] = {}
    for m in range(p.microbatches(workload)):
        _forward(b, m, sizes)
        ready = _backward(b, m, sizes)
    if p.zero < 2 and p.dp > 1:
        reduced = _reduce(b, buckets, ready)
        b.last = None
        _optimizer(b, reduced)
        if p.zero == 1:
            for i, (_, size) in enumerate(buckets):
                b.blocking(f"param/s0/bucket{i}", "all_gather", ("dp",), _padded(size, p.dp), "param")
    else:
        _optimizer(b, [])
    return b.listing.tasks, {STAGE: bucket_names(buckets)}


def _optimizer(b: _Builder, after: list[str]) -> None:
    weights = stage_parameters(b.workload, b.p, 0)
    shards = b.p.shards if b.p.zero else 1
    op = Compute(group=STAGE, kernels=(kernel("adamw", b.workload.precision, params=-(-round(weights) // shards)),))
    b.last = b.listing.add("optimizer/s0", op, b.last, *after)


def _padded(size_B: float, ranks: int) -> float:
    """Bytes rounded up so that every rank has an equal share of whole elements."""
    return -(-size_B // (4 * ranks)) * 4 * ranks


def _unit_sizes(workload: Workload, p: Parallelism) -> dict[str, float]:
    """Weights of each unit of ZeRO 2 and 3 on one rank."""
    shape = workload.shape
    whole = stage_parameters(workload, p, 0)
    each = (shape.layer_parameters - 2 * shape.hidden) / p.tp + 2 * shape.hidden
    units = {f"layer{i}": each for i in range(shape.layers)}
    return {**units, ROOT: whole - each * shape.layers}


def _gather(b: _Builder, m: int, way: str, unit: str, sizes: dict[str, float]) -> None:
    wanted = b.p.zero == 3 or (b.p.zero == 2 and way == "fwd")
    if wanted and b.p.dp > 1 and not (unit == ROOT and way == "bwd"):
        size = sizes[unit] * WIDTH_B[b.workload.precision]
        b.blocking(f"m{m}/{way}/{unit}/all_gather", "all_gather", ("dp",), _padded(size, b.p.dp), "param")


def _scatter(b: _Builder, m: int, unit: str, sizes: dict[str, float]) -> None:
    if b.p.zero >= 2 and b.p.dp > 1:
        size = sizes[unit] * WIDTH_B[b.workload.grad_precision]
        b.blocking(f"m{m}/bwd/{unit}/reduce_scatter", "reduce_scatter", ("dp",), _padded(size, b.p.dp), "grad")


def _forward(b: _Builder, m: int, sizes: dict[str, float]) -> None:
    shape, s = b.workload.shape, b.p.part(b.workload)
    kept = layer_activations_B(shape, s, b.p.recompute)
    _gather(b, m, "fwd", ROOT, sizes)
    b.compute(f"m{m}/fwd/embed", embed(shape, s), s.rows * shape.hidden * WIDTH_B[s.element])
    for i in range(shape.layers):
        at = f"m{m}/fwd/layer{i}"
        _gather(b, m, "fwd", f"layer{i}", sizes)
        if b.p.tp == 1:
            b.compute(at, layer(shape, s), kept)
            continue
        for name, kernels in (("attn", attention(shape, s)), ("mlp", mlp(shape, s))):
            b.compute(f"{at}/{name}", kernels, kept / 2)
            b.blocking(
                f"{at}/{name}/all_reduce", "all_reduce", ("tp",), s.rows * shape.hidden * WIDTH_B[s.element], "comm"
            )
    b.compute(f"m{m}/fwd/head", head(shape, s), head_activations_B(shape, s))


def _backward(b: _Builder, m: int, sizes: dict[str, float]) -> dict[str, str]:
    """The backward pass; the task after which each part's gradients are complete."""
    shape, s = b.workload.shape, b.p.part(b.workload)
    kept = layer_activations_B(shape, s, b.p.recompute)
    ready = {"head": b.compute(f"m{m}/bwd/head", head(shape, s, backward=True), -head_activations_B(shape, s))}
    for i in reversed(range(shape.layers)):
        at = f"m{m}/bwd/layer{i}"
        _gather(b, m, "bwd", f"layer{i}", sizes)
        if b.p.tp == 1:
            b.compute(at, layer(shape, s, backward=True), -kept)
        else:
            for name, kernels in (("mlp", mlp(shape, s, backward=True)), ("attn", attention(shape, s, backward=True))):
                b.compute(f"{at}/{name}", kernels, -kept / 2)
                b.blocking(
                    f"{at}/{name}/all_reduce", "all_reduce", ("tp",), s.rows * shape.hidden * WIDTH_B[s.element], "comm"
                )
        ready[f"layer{i}"] = b.last or at
        _scatter(b, m, f"layer{i}", sizes)
    ready["embed"] = b.compute(
        f"m{m}/bwd/embed", embed(shape, s, backward=True), -s.rows * shape.hidden * WIDTH_B[s.element]
    )
    _scatter(b, m, ROOT, sizes)
    return ready


def _buckets(workload: Workload, p: Parallelism) -> list[tuple[list[str], float]]:
    width = WIDTH_B[workload.grad_precision]
    sized = [(name, prod(_local(name, shape, p)) * width) for name, shape in reversed(workload.shape.parameters())]
    return in_buckets(sized, p.first_bucket_B, p.bucket_B)


def _local(name: str, shape: tuple[int, ...], p: Parallelism) -> tuple[int, ...]:
    """A weight's shape on one rank: matrices of layers are split, everything else is whole."""
    if p.tp == 1 or "proj" not in name:
        return shape
    return (shape[0] // p.tp, *shape[1:])


def _reduce(b: _Builder, buckets: list[tuple[list[str], float]], ready: dict[str, str]) -> list[str]:
    """One collective for each bucket, once the last of its gradients is complete (or all of them, without overlap)."""
    kind: CollectiveKind = "reduce_scatter" if b.p.zero else "all_reduce"
    out = []
    for i, (names, size) in enumerate(buckets):
        after = ready[_part(names[-1])] if b.p.overlap else ready["embed"]
        size = _padded(size, b.p.dp) if b.p.zero else size
        out.append(b.collective(f"grad/s0/bucket{i}", kind, ("dp",), size, "grad", after))
    return out


def _part(name: str) -> str:
    """The part of the model whose backward completes a weight's gradient."""
    if name.startswith("model.layers."):
        return f"layer{name.split('.')[2]}"
    return "embed" if name.startswith("model.embed") else "head"
