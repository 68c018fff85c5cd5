"""Training listed chunk by chunk, for pipelines and large clusters: one computation for each pass of a microbatch through a chunk.

    m3/s2c1/fwd, m3/s2c1/fwd/tp, m3/s2c1/fwd/send, ..., m3/s2c1/bwd, ..., grad/s2/bucket0, ..., optimizer/s2, param/s2/bucket0

Tensor-parallel collectives stand between the layers' halves and hide behind nothing, so a chunk's are one task that follows its
computation. With sequence parallelism an all-reduce is a reduce-scatter and an all-gather of the same volume.
"""

from dataclasses import dataclass, field

from costmodels.kernels import WIDTH_B, kernel
from costmodels.layers import Slice, embed, head, layer, merged
from costmodels.memory import head_activations_B, layer_activations_B
from simcore.parallelism import Parallelism
from simcore.plan import Collective, CollectiveKind, Compute, Transfer
from simcore.schedule import Step, stage_steps
from simcore.schedule import merged as merged_steps
from simcore.training_plan import Listing, Tasks, chunk_layers, stage_parameters
from simcore.workloads.transformer_training import Workload


@dataclass(slots=True)
class _Chunks:
    """Sizes that every task needs, and the tasks so far."""

    workload: Workload
    p: Parallelism
    s: Slice
    layers: list[int]  # by virtual stage
    listing: Listing = field(default_factory=Listing)
    ops: dict[tuple[object, ...], Compute] = field(default_factory=dict)
    out: dict[tuple[bool, int, int], str] = field(
        default_factory=dict
    )  # last task of a pass, by (forward, microbatch, virtual)
    arrived: dict[tuple[bool, int, int], str] = field(default_factory=dict)  # the transfer that brings its input

    @property
    def last_virtual(self) -> int:
        return len(self.layers) - 1

    def compute_op(self, virtual: int, *, forward: bool) -> Compute:
        """The computation of a chunk, one object for all microbatches."""
        key = (virtual % self.p.pp, self.layers[virtual], virtual == 0, virtual == self.last_virtual, forward)
        if key not in self.ops:
            shape, s, recompute = self.workload.shape, self.s, self.p.recompute
            kernels = merged(layer(shape, s, backward=not forward, recompute=recompute), self.layers[virtual])
            if virtual == 0:
                kernels += embed(shape, s, backward=not forward)
            if virtual == self.last_virtual:
                kernels += head(shape, s, backward=not forward)
            self.ops[key] = Compute(group=f"stage{virtual % self.p.pp}", kernels=tuple(k for k in kernels if k.count))
        return self.ops[key]

    def activation_B(self, virtual: int) -> float:
        """What a chunk keeps of one microbatch from its forward to its backward pass."""
        kept = self.layers[virtual] * layer_activations_B(self.workload.shape, self.s, self.p.recompute)
        if virtual == self.last_virtual:
            kept += head_activations_B(self.workload.shape, self.s)
        return kept

    @property
    def boundary_B(self) -> float:
        """Activations between two layers on one rank of the tensor-parallel group."""
        return self.s.rows * self.workload.shape.hidden * WIDTH_B[self.s.element]


def chunk_tasks(workload: Workload, p: Parallelism) -> Tasks:
    """Tasks of one iteration and the buckets of gradients, by stage."""
    c = _Chunks(workload, p, p.part(workload), chunk_layers(workload, p))
    microbatches = p.microbatches(workload)
    orders = [stage_steps(s, p.pp, p.vpp, microbatches) for s in range(p.pp)]
    for stage, step in merged_steps(orders):
        _pass(c, stage, step)
    buckets: dict[str, list[list[str]]] = {}
    for stage in range(p.pp):
        buckets[f"stage{stage}"] = _finish_stage(c, stage, microbatches - 1)
    return c.listing.tasks, buckets


def _pass(c: _Chunks, stage: int, step: Step) -> None:
    """One microbatch through one chunk: wait for the input, gather weights, compute, synchronise, send on."""
    virtual = step.chunk * c.p.pp + stage
    way = "fwd" if step.forward else "bwd"
    at = f"m{step.microbatch}/s{stage}c{step.chunk}/{way}"
    key = (step.forward, step.microbatch, virtual)
    waits = [c.arrived.get(key)]
    if c.p.zero == 3:
        waits.append(_gather(c, stage, at, virtual))
    kept = c.activation_B(virtual) * (1 if step.forward else -1)
    last = c.listing.add(at, c.compute_op(virtual, forward=step.forward), *waits, activation_B=kept)
    last = _tensor_parallel(c, stage, at, virtual, last, forward=step.forward)
    last = _context_parallel(c, stage, at, virtual, last, forward=step.forward)
    if c.p.zero >= 2 and not step.forward:
        _scatter(c, stage, at, virtual, last)
    c.out[key] = last
    following = virtual + 1 if step.forward else virtual - 1
    if 0 <= following <= c.last_virtual:
        _send(c, at, stage, following, key, last)


def _send(c: _Chunks, at: str, stage: int, following: int, key: tuple[bool, int, int], last: str) -> None:
    """Activations or their gradients to the next virtual stage; with sequence parallelism each rank sends its part of them."""
    target = following % c.p.pp
    arrival = (key[0], key[1], following)
    if target == stage:
        c.arrived[arrival] = last
        return
    size = c.boundary_B / (c.p.tp if c.p.sequence_parallel else 1)
    stream = f"send {'fwd' if key[0] else 'bwd'}"
    op = Transfer(source=f"stage{stage}", target=f"stage{target}", nbytes=round(size), stream=f"{stream} {stage % 2}")
    c.arrived[arrival] = c.listing.add(f"{at}/send", op, last)


def _collective(
    c: _Chunks,
    stage: int,
    name: str,
    kind: CollectiveKind,
    along: tuple[str, ...],
    size: float,
    stream: str,
    *after: str,
    repeat: int = 1,
) -> str:
    dtype = c.workload.grad_precision if stream == "grad" else c.s.element
    op = Collective(
        kind=kind, group=f"stage{stage}", along=along, nbytes=round(size), dtype=dtype, repeat=repeat, stream=stream
    )
    return c.listing.add(name, op, *after)


def _tensor_parallel(c: _Chunks, stage: int, at: str, virtual: int, last: str, *, forward: bool) -> str:
    """Two all-reduces a layer and direction (Shoeybi et al. 2019, figure 3); full recomputation repeats the forward ones."""
    if c.p.tp == 1:
        return last
    times = 2 * c.layers[virtual] * (2 if c.p.recompute == "full" and not forward else 1)
    times += 1 if virtual in (0, c.last_virtual) else 0
    if times == 0:
        return last
    if not c.p.sequence_parallel:
        return _collective(c, stage, f"{at}/tp", "all_reduce", ("tp",), c.boundary_B, "compute", last, repeat=times)
    scattered = _collective(
        c, stage, f"{at}/tp/scatter", "reduce_scatter", ("tp",), c.boundary_B, "compute", last, repeat=times
    )
    return _collective(c, stage, f"{at}/tp", "all_gather", ("tp",), c.boundary_B, "compute", scattered, repeat=times)


def _context_parallel(c: _Chunks, stage: int, at: str, virtual: int, last: str, *, forward: bool) -> str:
    """Keys and values of the whole sequence, gathered in forward, their gradients scattered in backward
    (Grattafiori et al. 2024, section 3.3.2)."""
    if c.p.cp == 1 or not c.layers[virtual]:
        return last
    size = (
        2 * c.s.rows * c.p.cp * max(c.workload.shape.kv_dim / c.p.tp, c.workload.shape.head_dim) * WIDTH_B[c.s.element]
    )
    kind: CollectiveKind = "all_gather" if forward else "reduce_scatter"
    return _collective(c, stage, f"{at}/cp", kind, ("cp",), size, "compute", last, repeat=c.layers[virtual])


def _chunk_weights(c: _Chunks, virtual: int) -> float:
    """Weights of a chunk on one rank."""
    stage = virtual % c.p.pp
    if c.p.vpp == 1:
        return stage_parameters(c.workload, c.p, stage)
    shape = c.workload.shape
    vocabulary = shape.embedding_parameters / c.p.tp if virtual in (0, c.last_virtual) else 0.0
    return c.layers[virtual] * ((shape.layer_parameters - 2 * shape.hidden) / c.p.tp + 2 * shape.hidden) + vocabulary


def _gather(c: _Chunks, stage: int, at: str, virtual: int) -> str | None:
    """ZeRO 3: the chunk's weights, layer by layer; the gathers of a layer hide behind the computation of the one before."""
    if c.p.shards == 1:
        return None
    parts = max(c.layers[virtual], 1)
    size = _chunk_weights(c, virtual) * WIDTH_B[c.s.element] / parts
    return _collective(c, stage, f"{at}/all_gather", "all_gather", ("dp", "cp"), size, "param", repeat=parts)


def _scatter(c: _Chunks, stage: int, at: str, virtual: int, last: str) -> str | None:
    """ZeRO 2 and 3: the chunk's gradients after every microbatch."""
    if c.p.shards == 1:
        return None
    size = _chunk_weights(c, virtual) * WIDTH_B[c.workload.grad_precision]
    return _collective(c, stage, f"{at}/reduce_scatter", "reduce_scatter", ("dp", "cp"), size, "grad", last)


def _finish_stage(c: _Chunks, stage: int, last_microbatch: int) -> list[list[str]]:
    """Reduce gradients chunk by chunk as their last backward pass ends, step, and with ZeRO gather the new weights."""
    virtuals = [chunk * c.p.pp + stage for chunk in reversed(range(c.p.vpp))]
    ends = [c.out[(False, last_microbatch, v)] for v in virtuals]
    waits: list[str] = [ends[-1]]
    if c.p.shards > 1 and c.p.zero < 2:
        kind: CollectiveKind = "reduce_scatter" if c.p.zero else "all_reduce"
        for i, (virtual, end) in enumerate(zip(virtuals, ends, strict=True)):
            size = _chunk_weights(c, virtual) * WIDTH_B[c.workload.grad_precision]
            after = end if c.p.overlap else ends[-1]
            waits.append(_collective(c, stage, f"grad/s{stage}/bucket{i}", kind, ("dp", "cp"), size, "grad", after))
    elif c.p.shards > 1:
        waits.append(f"{_name(last_microbatch, stage, virtuals[-1] // c.p.pp)}/bwd/reduce_scatter")
    weights = stage_parameters(c.workload, c.p, stage) / (c.p.shards if c.p.zero else 1)
    op = Compute(group=f"stage{stage}", kernels=(kernel("adamw", c.s.element, params=max(round(weights), 1)),))
    step = c.listing.add(f"optimizer/s{stage}", op, *waits)
    if c.p.shards > 1 and c.p.zero in (1, 2):
        for i, virtual in enumerate(virtuals):
            size = _chunk_weights(c, virtual) * WIDTH_B[c.s.element]
            _collective(c, stage, f"param/s{stage}/bucket{i}", "all_gather", ("dp", "cp"), size, "param", step)
    return [_weight_names(c, v) for v in virtuals]


def _name(microbatch: int, stage: int, chunk: int) -> str:
    return f"m{microbatch}/s{stage}c{chunk}"


def _weight_names(c: _Chunks, virtual: int) -> list[str]:
    """Modules of a chunk, in the order in which their gradients are complete."""
    first = sum(c.layers[:virtual])
    names = [f"model.layers.{i}" for i in reversed(range(first, first + c.layers[virtual]))]
    if virtual == c.last_virtual:
        names = ["lm_head", "model.norm", *names]
    return [*names, "model.embed_tokens"] if virtual == 0 else names
