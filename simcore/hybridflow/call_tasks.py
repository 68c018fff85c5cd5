"""The tasks of one call: updates as training has them, forward passes, generation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from costmodels import generation, generation_eager
from costmodels.batching import Segments
from costmodels.kernels import Kernel, kernel
from costmodels.memory import gradient_dtype
from simcore.draft import Draft
from simcore.hybridflow.generation_costs import PREFILL_TOKENS, Degrees, GenerationCosts
from simcore.hybridflow.model_costs import Strategy
from simcore.plan import Collective, Compute, Op, Task, Transfer
from simcore.training.choice import Choice
from simcore.training.chunk_sizes import ChunkSizes
from simcore.training.chunk_tasks import ChunkWriter
from simcore.training.gradient_buckets import stage_buckets
from simcore.workloads.transformer_training import TransformerTraining

MOST_DECODES = 32
"""Kernels that stand for the decode steps of a replica: steps that follow each other are taken together."""


def padded(update: TransformerTraining, choice: Choice) -> TransformerTraining:
    """The update with a batch that replicas and microbatches divide: what is missing is padding."""
    at_once = choice.dp * choice.microbatch
    return replace(update, global_batch=-(-update.global_batch // at_once) * at_once)


def update_tasks(update: TransformerTraining, choice: Choice, *, hosted: bool = False) -> list[Task]:
    """One update as a training iteration, in the names and groups of training; `hosted`: as in `_hosted`, and gradients are copied
    into the messages in which they are summed."""
    work = padded(update, choice)
    sizes = ChunkSizes(work, choice)
    buckets = [stage_buckets(work, choice, sizes, s) for s in range(choice.pp)]
    tasks = ChunkWriter(work, choice, sizes, buckets).write().tasks
    if hosted and choice.dp > 1 and choice.zero == 0:
        dtype = gradient_dtype(work.precision, master_weights=choice.master_weights)
        last = choice.microbatches(work) - 1
        packing = {
            f"m{last}/s{s}c0/bwd": kernel("copy", dtype, elements=sum(map(sizes.elements, sizes.chunks[s])))
            for s in range(choice.pp)
        }
        tasks = [_with(t, packing[t.id]) if t.id in packing else t for t in tasks]
    return _hosted(tasks, update.model.layers // choice.pp) if hosted and choice.tp > 1 else tasks


def _with(task: Task, extra: Kernel) -> Task:
    """The task with one more kernel."""
    assert isinstance(task.op, Compute)
    return replace(task, op=replace(task.op, kernels=(*task.op.kernels, extra)))


def _hosted(tasks: list[Task], layers: int) -> list[Task]:
    """With what the host does for the modules of tensor parallelism in every pass, where operators do not run ahead of it."""
    extra = {way: generation.split_layers(layers, forward=way == "fwd") for way in ("fwd", "bwd")}
    ways = [t.id.rpartition("/")[2] for t in tasks]
    return [
        _with(t, extra[way]) if isinstance(t.op, Compute) and way in extra else t
        for t, way in zip(tasks, ways, strict=True)
    ]


def forward_tasks(
    update: TransformerTraining, strategy: Strategy, sequences: int, *, hosted: bool = False
) -> list[Task]:
    """A forward pass over `sequences`, in the names and groups of training; `hosted` as in `_hosted`.

    Without a pipeline all microbatches are one task of every kind, which takes the time of all of them.
    """
    recompute: Mapping[str, str] = {"recompute": "none"}
    choice = replace(strategy.choice, microbatch=strategy.forward_microbatch, **recompute)  # type: ignore[arg-type]
    number = -(-sequences // (choice.dp * choice.microbatch))
    sizes = ChunkSizes(replace(update, global_batch=sequences), choice)
    draft = Draft()
    arrived: dict[tuple[int, int], str] = {}
    rounds, times = (1, number) if choice.pp == 1 else (number, 1)
    for m in range(rounds):
        for stage in range(choice.pp):
            piece = sizes.chunks[stage][0]
            ops = sizes.ops(stage, piece, forward=True)
            name = f"m{m}/s{stage}/fwd"
            done = draft.add(name, _times(ops.compute, times), [arrived.get((m, stage))])
            for suffix, op in ops.after:
                done = draft.add(f"{name}/{suffix}", replace(op, repeat=op.repeat * times), [done])
            if stage + 1 < choice.pp:
                send = Transfer(
                    source=f"stage{stage}",
                    target=f"stage{stage + 1}",
                    nbytes=sizes.boundary_B,
                    stream=f"fwd from stage{stage}",
                )
                arrived[m, stage + 1] = draft.add(f"{name}/send", send, [done])
    layers = update.model.layers // choice.pp * times
    return _hosted(draft.tasks, layers) if hosted and choice.tp > 1 else draft.tasks


def _times(op: Compute, times: int) -> Compute:
    return replace(op, kernels=tuple(replace(k, count=k.count * times) for k in op.kernels))


def generation_kernels(costs: GenerationCosts, degrees: Degrees, segments: Segments, n: int) -> tuple[Kernel, ...]:
    """What one replica of a pool of `n` ranks runs: its prompts in portions, and decode steps, those alike together."""
    work = costs.workload
    eager = generation_eager.eager_of(costs.zone.device) is not None  # no other device shares what it computes with
    split = generation.Split(degrees.tp, degrees.pp, costs.beside(n) if eager else 1.0)
    engine, dtype = work.generation.engine, work.precision
    tokens = float((segments.prompts * segments.prompt_len).sum())
    length = round(tokens / max(segments.prompts.sum(), 1.0))
    together = max(min(PREFILL_TOKENS // length, round(segments.prompts.sum())), 1)
    reads = replace(
        generation.prefill(engine, costs.shape, dtype, split, batch=together, q_len=length),
        count=max(round(tokens / (together * length)), 1),
    )
    return (
        reads,
        *(
            generation.decode(engine, costs.shape, dtype, split, batch=batch, kv_len=kv_len, steps=steps)
            for batch, kv_len, steps in _together(segments)
        ),
    )


def _together(segments: Segments) -> Iterator[tuple[int, int, int]]:
    """(batch, kv_len, steps) of runs of segments, at most `MOST_DECODES` and some, each about equally long."""
    ends = np.cumsum(segments.steps)
    of = np.minimum((ends - segments.steps) * MOST_DECODES // max(ends[-1], 1.0), MOST_DECODES - 1)
    of = of * (int(segments.batch.max()) + 1) + segments.batch if len(segments.steps) <= MOST_DECODES else of
    for run in np.unique(of):
        rows = of == run
        steps = segments.steps[rows]
        sequences = (steps * segments.batch[rows]).sum()
        held = (steps * segments.batch[rows] * segments.kv_len[rows]).sum()
        yield max(round(sequences / steps.sum()), 1), max(round(held / sequences), 1), int(steps.sum())


def unawaited(tasks: Sequence[Task]) -> list[Task]:
    """The tasks of a rank that nobody meets: a pool of one."""
    return [replace(t, op=replace(t.op, awaited=False)) if isinstance(t.op, Compute) else t for t in tasks]


def renamed(
    tasks: Sequence[Task], prefix: str, group: Callable[[str], str], after: Sequence[str]
) -> tuple[list[Task], list[str]]:
    """The tasks with names under `prefix` in other groups, those that waited for nothing after `after`; and the last of them."""
    ops: dict[int, Op] = {}
    waited = {a for t in tasks for a in t.after}
    found = []
    for t in tasks:
        if id(t.op) not in ops:
            ops[id(t.op)] = _moved(t.op, group)
        waits = tuple(f"{prefix}/{a}" for a in t.after) or tuple(after)
        found.append(Task(f"{prefix}/{t.id}", ops[id(t.op)], waits, t.activation_B))
    return found, [f"{prefix}/{t.id}" for t in tasks if t.id not in waited]


def _moved(op: Op, group: Callable[[str], str]) -> Op:
    if isinstance(op, Transfer):
        return replace(op, source=group(op.source), target=group(op.target))
    assert isinstance(op, (Compute, Collective))
    return replace(op, group=group(op.group))
