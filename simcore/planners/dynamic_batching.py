"""Uneven batches: classes of devices get as many samples as they finish in the same time, with precisions as given.

The baseline that QSync compares with (semi-dynamic load balancing; Chen et al., SoCC 2020).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from pydantic import Field

from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.errors import DoesNotFit, Problem
from simcore.plan import Plan
from simcore.planners.uniform_precision import (
    Common,
    Precision,
    asked_of,
    memory_limits,
    other_workload,
    tables,
    uniform,
    widened,
)
from simcore.progress import Progress
from simcore.qsync.local import LocalGraph
from simcore.qsync.peak import memory_B
from simcore.qsync.plans import DeviceClass, device_classes, precision_plan
from simcore.qsync.replay import replayer
from simcore.qsync.settings import setting
from simcore.workloads.operator_training import OperatorTraining

TRIED = 12
"""Splits whose iterations are replayed, those first that straight lines in the batch promise the most of."""


class Params(Common):
    """Precisions; the batches are found."""

    precision: Precision | dict[str, Precision] = Field(
        "float32", description="What operators compute in, or that by device; others compute in float32."
    )


def plan(
    workload: object,
    cluster: Cluster,
    cost: Costs,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,  # noqa: ARG001 - the replay is the simulation in closed form
    progress: Progress | None = None,  # noqa: ARG001 - done at once
) -> Plan:
    """The plan; batches are whole and add up to the workload's. Raises `DoesNotFit` where no split fits the memory."""
    if not isinstance(workload, OperatorTraining):
        raise other_workload("dynamic_batching")
    classes = device_classes(cluster)
    limits = memory_limits(params.memory, classes)
    asked = {c.name: asked_of(params.precision, c.name) for c in classes}

    @cache
    def local(k: int, batch: int) -> LocalGraph:
        return tables(workload, classes[k], batch, cost, params)

    @cache
    def seconds(k: int, batch: int) -> float:
        made = local(k, batch)
        return float(setting(made, uniform(made, asked[classes[k].name])).device_s.sum())

    def fits(k: int, batch: int) -> bool:
        made = local(k, batch)
        return memory_B(made, setting(made, uniform(made, asked[classes[k].name]))) <= limits[classes[k].name]

    samples = workload.samples(cluster.n_ranks)
    most = [max(samples // len(c.ranks), 1) for c in classes]
    largest = [_last(lambda b, k=k: fits(k, b), m) for k, m in enumerate(most)]  # type: ignore[misc]
    ends = [(1, max(m, 2)) for m in largest]
    lines = [(seconds(k, a), (seconds(k, b) - seconds(k, a)) / (b - a)) for k, (a, b) in enumerate(ends)]
    splits = sorted(
        _splits([len(c.ranks) for c in classes], largest, samples),
        key=lambda split: max(first + each * (b - 1) for (first, each), b in zip(lines, split, strict=True)),
    )
    if not splits:
        raise _too_large(classes, largest, samples)
    found: dict[tuple[int, ...], float] = {}
    for split in splits[:TRIED]:
        made = [local(k, b) for k, b in enumerate(split)]
        chosen = [setting(m, uniform(m, asked[c.name])) for m, c in zip(made, classes, strict=True)]
        found[split] = replayer(made, cluster, cost).replay(chosen).iteration_s
    best = min(found, key=lambda split: found[split])
    locals_: Mapping[str, LocalGraph] = {
        c.name: local(k, b) for k, (c, b) in enumerate(zip(classes, best, strict=True))
    }
    precisions = {name: uniform(made, asked[name]) for name, made in locals_.items()}
    decisions = {
        "system": "dynamic_batching",
        "rounding": params.rounding,
        "scaling": params.scaling,
        "widened": {name: widened(precisions[name], asked[name]) for name in precisions},
        "memory_limit_B": limits,
        "predicted": {"iteration_s": found[best]},
        "search": {"splits": len(splits), "replayed": len(found)},
    }
    return precision_plan(workload, cluster, locals_, precisions, decisions=decisions)


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that a condition holds for which holds for all smaller ones; 0 where it holds for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _splits(ranks: Sequence[int], largest: Sequence[int], samples: int) -> Iterator[tuple[int, ...]]:
    """Batches of at least one sample for the ranks of each class that add up to `samples`."""
    if len(ranks) == 1:
        if samples % ranks[0] == 0 and 1 <= samples // ranks[0] <= largest[0]:
            yield (samples // ranks[0],)
        return
    for first in range(1, min(largest[0], samples // ranks[0]) + 1):
        for rest in _splits(ranks[1:], largest[1:], samples - first * ranks[0]):
            yield (first, *rest)


def _too_large(classes: Sequence[DeviceClass], largest: Sequence[int], samples: int) -> DoesNotFit:
    room = ", ".join(f"{b} on each {c.name}" for c, b in zip(classes, largest, strict=True))
    problem = Problem(
        "workload.global_batch", str(samples), f"whole batches of at most {room}", "Compute in fewer bits."
    )
    return DoesNotFit("no split of the batch fits the memory of the cluster", [problem])
