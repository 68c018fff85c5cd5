"""Uneven batches: classes of devices get as many samples as they finish in the same time, with precisions as given.

The baseline that QSync compares with (semi-dynamic load balancing; Chen et al., SoCC 2020).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.errors import DoesNotFit, Problem
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.qsync.common import (
    Common,
    Precision,
    asked_of,
    check_casts,
    check_precision,
    memory_limits,
    other_workload,
    tables,
    uniform,
    widened,
)
from simcore.qsync.local import LocalGraph
from simcore.qsync.peak import memory_B
from simcore.qsync.plans import DeviceClass, device_classes, precision_plan
from simcore.qsync.replay import replayer
from simcore.qsync.settings import Setting, setting
from simcore.workloads.operator_training import OperatorTraining

TRIED = 12
"""Splits whose iterations are replayed, those first that straight lines in the batch promise the most of."""

Split = tuple[int, ...]
"""Samples on each rank, by class."""


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
    check_casts(params, classes)
    check_precision(params.precision, classes)
    limits = memory_limits(params.memory, classes)
    shares = [_Share(workload, of, cost, params, limits[of.name]) for of in classes]
    samples = workload.samples(cluster.n_ranks)
    splits = _promising(shares, samples)
    replayed = {split: _iteration_s(shares, split, cluster, cost) for split in splits[:TRIED]}
    best = min(replayed, key=lambda split: replayed[split])
    chosen = {s.of.name: s.at(b) for s, b in zip(shares, best, strict=True)}
    precisions = {name: uniform(local, asked_of(params.precision, name)) for name, (local, _) in chosen.items()}
    decisions: dict[str, Any] = {
        "system": "dynamic_batching",
        "rounding": params.rounding,
        "scaling": params.scaling,
        "casts": params.casts,
        "widened": {name: widened(of, asked_of(params.precision, name)) for name, of in precisions.items()},
        "memory_limit_B": limits,
        "predicted": {"iteration_s": replayed[best]},
        "search": {"splits": len(splits), "replayed": len(replayed)},
    }
    locals_ = {name: local for name, (local, _) in chosen.items()}
    return precision_plan(workload, classes, locals_, precisions, decisions=decisions)


@dataclass
class _Share:
    """One class with any batch, its operators in the precision asked for."""

    workload: OperatorTraining
    of: DeviceClass
    cost: Costs
    params: Params
    limit_B: float
    known: dict[int, tuple[LocalGraph, Setting]] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        return len(self.of.ranks)

    def at(self, batch: int) -> tuple[LocalGraph, Setting]:
        """Tables of so many samples on each rank, and what its operators then cost."""
        if batch not in self.known:
            local = tables(self.workload, self.of, batch, self.cost, self.params)
            self.known[batch] = local, setting(local, uniform(local, asked_of(self.params.precision, self.of.name)))
        return self.known[batch]

    def seconds(self, batch: int) -> float:
        """Of the device's kernels."""
        return float(self.at(batch)[1].device_s.sum())

    def fits(self, batch: int) -> bool:
        """Whether so many samples keep to the memory."""
        return memory_B(*self.at(batch)) <= self.limit_B

    def largest(self, samples: int) -> int:
        """The largest batch that fits and is no more than all samples of an iteration; 0 where none does."""
        return _last(self.fits, max(samples // self.ranks, 1))


def _promising(shares: Sequence[_Share], samples: int) -> list[Split]:
    """Splits that fit, those first whose slowest class takes least by straight lines. Raises `DoesNotFit` where there is none."""
    largest = [share.largest(samples) for share in shares]
    found = list(_splits([share.ranks for share in shares], largest, samples))
    if not found:
        raise _too_large([share.of for share in shares], largest, samples)
    lines = [_line(share, max(most, 2)) for share, most in zip(shares, largest, strict=True)]
    return sorted(found, key=lambda split: max(line(batch) for line, batch in zip(lines, split, strict=True)))


def _line(share: _Share, most: int) -> Callable[[int], float]:
    """Seconds by batch, straight through those of 1 and of `most`."""
    first = share.seconds(1)
    each = (share.seconds(most) - first) / (most - 1)
    return lambda batch: first + each * (batch - 1)


def _iteration_s(shares: Sequence[_Share], split: Split, cluster: Cluster, cost: Costs) -> float:
    """Seconds of an iteration with these batches."""
    locals_, settings = zip(*(s.at(b) for s, b in zip(shares, split, strict=True)), strict=True)
    return replayer(locals_, cluster, cost).replay(settings).iteration_s


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that a condition holds for which holds for all smaller ones; 0 where it holds for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _splits(ranks: Sequence[int], largest: Sequence[int], samples: int) -> Iterator[Split]:
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
