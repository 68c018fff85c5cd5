"""A plan of one training step for chosen precisions: what profiles run, and comparisons of prediction and measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from costmodels import precision_kernels as kernels
from costmodels.kernels import Kernel, kernel
from costmodels.operator_graph import OperatorGraph
from costmodels.precision import casts, flows, of_device
from costmodels.specs import DeviceSpec
from simcore.buckets import assign
from simcore.plan import Collective, Compute, Group, Plan, Task

MiB = 2.0**20
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Ranks that compute alike: on `device`, `batch` samples each, adjustable operators as in `precision`."""

    ranks: tuple[int, ...]
    device: DeviceSpec
    batch: int
    precision: Mapping[str, str]


def step_kernels(graph: OperatorGraph, part: Part) -> dict[tuple[str, str], tuple[Kernel, ...]]:
    """(way, operator) -> casts and kernels, in forward order, then in backward order."""
    has, order = of_device(part.device), kernels.reordered(graph)
    flow = flows(graph, part.precision, has)
    changes: dict[tuple[str, str], list[Kernel]] = {}
    for change in casts(graph, flow, part.batch):
        changes.setdefault((change.way, change.operator), []).extend(kernels.cast(change))
    found: dict[tuple[str, str], tuple[Kernel, ...]] = {}
    for operator in graph:
        own = kernels.forward(graph, operator, part.batch, flow[operator.name].computes, order)
        found["forward", operator.name] = (*changes.get(("forward", operator.name), ()), *own)
    for operator in reversed(graph.operators):
        if operator.differentiable:
            mine = flow[operator.name]
            own = kernels.backward(graph, operator, part.batch, mine.backward, mine.output, order)
            found["backward", operator.name] = (*changes.get(("backward", operator.name), ()), *own)
    return found


def draft(
    graph: OperatorGraph,
    model: str,
    parts: Mapping[str, Part],
    *,
    optimizer: str,
    iterations: int,
    first_bucket_B: float = MiB,
    bucket_B: float = 25 * MiB,
) -> Plan:
    """One step on all parts; operators without kernels have no task."""
    n_ranks = sum(len(part.ranks) for part in parts.values())
    buckets = assign([(n, 4 * prod(size)) for n, size in graph.parameters.items()], first_bucket_B, bucket_B)
    tasks: list[Task] = []
    last: dict[str, str] = {}
    for name, part in parts.items():
        for (way, operator), run in step_kernels(graph, part).items():
            if not run:
                continue
            task = f"{name}/{'fwd' if way == 'forward' else 'bwd'}/{operator}"
            tasks.append(Task(task, Compute(group=name, kernels=run), (last[name],) if name in last else ()))
            last[name] = task
    tasks += _reductions(graph, parts, buckets, tasks) if n_ranks > 1 else []
    reduced = [t.id for t in tasks if t.id.startswith("grad/")]
    for name in parts:
        step = Compute(group=name, kernels=(kernel(optimizer, "float32", params=graph.elements),))
        tasks.append(Task(f"{name}/optimizer", step, (last[name], *reduced)))
    samples = sum(len(p.ranks) * p.batch for p in parts.values())
    return Plan(
        name=f"{model} on {', '.join(parts)}",
        n_ranks=n_ranks,
        groups={
            **{name: Group.listed(part.ranks) for name, part in parts.items()},
            "all": Group(axes=(("dp", n_ranks, 1),)),
        },
        tasks=tuple(tasks),
        decisions={
            "system": "uniform_precision",
            "precision": {name: dict(part.precision) for name, part in parts.items()},
            "batch": {name: part.batch for name, part in parts.items()},
            "rounding": "nearest",
            "scaling": "tensor",
            "buckets": buckets,
        },
        workload={
            "name": "operator_training",
            "model": model,
            "optimizer": optimizer.removesuffix("_momentum"),
            "momentum": MOMENTUM if optimizer == "sgd_momentum" else 0.0,
            "iterations": iterations,
            "seed": 0,
            "global_batch": samples,
            "samples_per_iteration": samples,
        },
    )


def _reductions(
    graph: OperatorGraph, parts: Mapping[str, Part], buckets: Sequence[Sequence[str]], tasks: Sequence[Task]
) -> list[Task]:
    """Each bucket's sum, after the operator that makes the last of its gradients."""
    planned = {task.id for task in tasks}
    made: list[Task] = []
    backward = [o for o in reversed(graph.operators) if o.differentiable]
    for i, names in enumerate(buckets):
        closing = next(o for o in reversed(backward) if set(o.parameters) & set(names))
        after = [f"{name}/bwd/{closing.name}" for name in parts]
        assert planned.issuperset(after)
        nbytes = 4 * sum(prod(graph.parameters[n]) for n in names)
        op = Collective(kind="all_reduce", group="all", along=("dp",), nbytes=nbytes, dtype="float32", stream="grad")
        made.append(Task(f"grad/bucket{i}", op, (*after, *([f"grad/bucket{i - 1}"] if i else []))))
    return made
