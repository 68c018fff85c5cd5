"""Which ranks of a plan of `operator_training` compute what, and how much memory they may take."""

from dataclasses import dataclass

import numpy as np

from simcore.plan import Compute, Plan

OPERATORS = "operator_training"
HAS = "precisions.json"
"""File beside a plan: the precisions of each rank's device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a rank stands: its group, its first sample in a global batch, how many it has, and how many there are."""

    group: str
    first: int
    count: int
    total: int


def place_of(plan: Plan, rank: int) -> Place:
    """Samples are dealt out in the order of ranks."""
    batch = plan.decisions["batch"]
    counts = [int(batch[group_of(plan, r)]) for r in range(plan.n_ranks)]
    return Place(group=group_of(plan, rank), first=sum(counts[:rank]), count=counts[rank], total=sum(counts))


def group_of(plan: Plan, rank: int) -> str:
    """The group whose precisions a rank computes in."""
    named = (n for n in plan.decisions["precision"] if n in plan.groups)
    return next(name for name in named if rank in np.ravel(plan.groups[name].ranks()))


def limit_of(plan: Plan, rank: int) -> float | None:
    """Bytes that a rank may take; None without a limit."""
    limits = plan.decisions.get("memory_limit_B") if plan.workload.get("name") == OPERATORS else None
    found = limits.get(group_of(plan, rank)) if limits else None
    return None if found is None else float(found)


def computing(plan: Plan) -> frozenset[str]:
    """Tasks that compute something; views do not."""
    return frozenset(task.id for task in plan.tasks if isinstance(task.op, Compute) and task.op.kernels)
