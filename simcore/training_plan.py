"""What every plan of transformer training has: groups, resident memory, the frame around its tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from costmodels.kernels import WIDTH_B
from costmodels.memory import OVERHEAD_B, state_B
from simcore.cluster import Cluster
from simcore.errors import PlanError
from simcore.parallelism import Parallelism, problems_of
from simcore.plan import Group, Op, Plan, Task
from simcore.schedule import layers_of_chunks
from simcore.workloads.transformer_training import Workload


@dataclass(slots=True)
class Listing:
    """Tasks as they are added; an op that is equal to an earlier one is that one."""

    tasks: list[Task] = field(default_factory=list)
    _ops: dict[Op, Op] = field(default_factory=dict)

    def add(self, name: str, op: Op, *after: str | None, activation_B: float = 0.0) -> str:
        """Add a task after those named (None is left out); returns its id."""
        known = self._ops.setdefault(op, op)
        self.tasks.append(Task(name, known, tuple(dict.fromkeys(a for a in after if a)), round(activation_B)))
        return name


def training_plan(workload: Workload, cluster: Cluster, p: Parallelism) -> Plan:
    """The plan of one iteration. Raises `PlanError` with every reason why `p` cannot be one."""
    from simcore.training_chunks import chunk_tasks
    from simcore.training_layers import layer_tasks

    found = problems_of(p, workload, cluster.n_ranks)
    if found:
        raise PlanError("this parallelism cannot be", found)
    groups = stage_groups(p)
    lister = chunk_tasks if p.detail == "chunk" else layer_tasks
    tasks, buckets = lister(workload, p)
    gpu = any(d.kind == "gpu" for d in cluster.devices)
    return Plan(
        name=f"{workload.precision} training, dp {p.dp} tp {p.tp} pp {p.pp} cp {p.cp}",
        n_ranks=cluster.n_ranks,
        groups=groups,
        tasks=tuple(tasks),
        decisions={**p.decisions(workload), "buckets": buckets},
        workload=workload.to_plan(),
        memory_B={f"stage{s}": resident(workload, p, s, gpu=gpu) for s in range(p.pp)},
    )


def stage_groups(p: Parallelism) -> dict[str, Group]:
    """One group for each pipeline stage, with axes dp, cp, tp."""
    axes = (("dp", p.dp, p.cp * p.tp), ("cp", p.cp, p.tp), ("tp", p.tp, 1))
    return {f"stage{s}": Group(axes=axes, offset=s * p.shards * p.tp) for s in range(p.pp)}


def chunk_layers(workload: Workload, p: Parallelism) -> list[int]:
    """Layers of each virtual stage; chunk c of stage s is virtual stage c * pp + s."""
    return layers_of_chunks(workload.shape.layers, p.pp * p.vpp)


def stage_parameters(workload: Workload, p: Parallelism, stage: int) -> float:
    """Weights on one rank of a stage, before ZeRO shards them."""
    layers = chunk_layers(workload, p)
    own = sum(layers[c * p.pp + stage] for c in range(p.vpp))
    shape = workload.shape
    matrices = (shape.layer_parameters - 2 * shape.hidden) / p.tp + 2 * shape.hidden
    vocabulary = shape.embedding_parameters / (p.tp if p.vocab_parallel else 1)
    total = own * matrices
    if stage == 0:
        total += vocabulary
    if stage == p.pp - 1:
        total += shape.hidden + (0 if shape.tied_embeddings and p.pp == 1 else vocabulary)
    return total


def resident(workload: Workload, p: Parallelism, stage: int, *, gpu: bool) -> dict[str, float]:
    """Bytes by kind on one rank of a stage, without activations."""
    weights = stage_parameters(workload, p, stage)
    out = state_B(weights, workload.precision, workload.grad_precision, zero=p.zero, shards=p.shards)
    if p.zero == 3:  # the layer at hand and the next one are whole
        width = WIDTH_B[p.part(workload).element]
        out["gathered"] = 2 * workload.shape.layer_parameters / p.tp * width
    if gpu:
        out["overhead"] = OVERHEAD_B
    return out


def in_buckets(sized: Sequence[tuple[str, float]], first_B: float, rest_B: float) -> list[tuple[list[str], float]]:
    """Gradients in the order they are ready, in buckets that close once they hold `first_B`, then `rest_B` (torch's DDP)."""
    out: list[tuple[list[str], float]] = []
    names: list[str] = []
    held = 0.0
    for name, size in sized:
        names.append(name)
        held += size
        if held >= (rest_B if out else first_B):
            out.append((names, held))
            names, held = [], 0.0
    return [*out, (names, held)] if names else out


def bucket_names(buckets: Sequence[tuple[list[str], float]]) -> list[list[str]]:
    return [names for names, _ in buckets]


Tasks = tuple[list[Task], dict[str, Any]]
