"""What can be known to be wrong with a plan before it runs: its own logic, its place on the cluster, its memory."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from simcore.cluster import Cluster
from simcore.errors import DoesNotFit, PlanError, Problem
from simcore.plan import Collective, Op, Plan, Read, Transfer, Write
from simcore.quantity import size

SHOWN = 20  # problems printed in full


def problems_of(plan: Plan, cluster: Cluster) -> list[Problem]:
    """Everything that contradicts itself or the cluster; memory is `shortfalls`."""
    found = [*_group_problems(plan, cluster), *_order_problems(plan)]
    known = set(plan.groups)
    for op in plan.distinct_ops[0]:
        found += _op_problems(op, plan, cluster, known)
    return found


def check(plan: Plan, cluster: Cluster) -> None:
    """Raise `PlanError` for what `problems_of` finds, `DoesNotFit` for what `shortfalls` finds."""
    found = problems_of(plan, cluster)
    if found:
        raise PlanError(f"plan {plan.name!r} cannot run on {cluster.name!r}", _shortened(found))
    lacking = shortfalls(plan, cluster)
    if lacking:
        raise DoesNotFit(f"plan {plan.name!r} does not fit the memory of {cluster.name!r}", _shortened(lacking))


def _shortened(problems: list[Problem]) -> list[Problem]:
    if len(problems) <= SHOWN:
        return problems
    rest = Problem("plan", f"{len(problems) - SHOWN} more problems", "none")
    return [*problems[:SHOWN], rest]


def _group_problems(plan: Plan, cluster: Cluster) -> Iterator[Problem]:
    if plan.n_ranks > cluster.n_ranks:
        yield Problem("n_ranks", str(plan.n_ranks), f"at most {cluster.n_ranks}, the ranks of the cluster")
    for name, group in plan.groups.items():
        ranks = group.ranks().reshape(-1)
        if len(ranks) == 0 or ranks.min() < 0 or ranks.max() >= plan.n_ranks:
            given = f"{ranks.min()} to {ranks.max()}" if len(ranks) else "no ranks"
            yield Problem(f"groups.{name}", given, f"ranks 0 to {plan.n_ranks - 1}")
        elif len(np.unique(ranks)) < len(ranks):
            yield Problem(f"groups.{name}", "the same rank twice", "each rank once")


def _order_problems(plan: Plan) -> Iterator[Problem]:
    position = plan.index
    if len(position) < len(plan.tasks):
        yield Problem("tasks", "the same id twice", "each id once")
        return
    before, after = plan.edges
    for i in np.unique(after[(before < 0) | (before >= after)]).tolist():
        task = plan.tasks[i]
        for name in task.after:
            if name not in position:
                yield Problem(f"tasks.{task.id}.after", repr(name), "the id of a task of this plan")
            elif position[name] >= i:
                yield Problem(f"tasks.{task.id}.after", repr(name), "a task listed before this one")


def _op_problems(op: Op, plan: Plan, cluster: Cluster, known: set[str]) -> Iterator[Problem]:
    kind = type(op).__name__.lower()
    groups = (op.source, op.target) if isinstance(op, Transfer) else (op.group,)
    missing = [name for name in groups if name not in known]
    for name in missing:
        yield Problem(f"{kind}.group", repr(name), "one of " + ", ".join(sorted(known)))
    if missing:
        return
    if getattr(op, "nbytes", 0) < 0:
        yield Problem(f"{kind}.nbytes", str(getattr(op, "nbytes", 0)), "at least 0")
    if isinstance(op, Collective):
        axes = [axis for axis, _, _ in plan.groups[op.group].axes]
        if not op.along or set(op.along) - set(axes):
            yield Problem(f"{kind}.along", repr(op.along), f"axes of group {op.group}: {', '.join(axes)}")
    if isinstance(op, Transfer) and len(plan.groups[op.source]) != len(plan.groups[op.target]):
        sizes = f"{len(plan.groups[op.source])} to {len(plan.groups[op.target])} ranks"
        yield Problem("transfer", sizes, "groups of equal size, rank i to rank i")
    if isinstance(op, (Read, Write)) and op.store not in cluster.stores:
        yield Problem(
            f"{kind}.store", repr(op.store), "a store of the cluster: " + (", ".join(cluster.stores) or "none")
        )


def shortfalls(plan: Plan, cluster: Cluster) -> list[Problem]:
    """Devices whose memory the plan exceeds: resident memory plus the peak of activations in program order.

    A planner that was given less than a device has says so in `decisions["memory_limit_B"]`, bytes by group.
    """
    found: list[Problem] = []
    limits = plan.decisions.get("memory_limit_B", {})
    resident, changes = resident_memory(plan), activation_changes(plan)
    active = {name for name, _ in changes}
    heavy = [name for name in plan.groups if any(resident[name].values()) or name in active]
    if not heavy:
        return found
    membership = np.stack([_members(plan, name) for name in heavy])
    kinds, first = np.unique(
        np.vstack([membership, cluster.device_index[: plan.n_ranks][None, :]]), axis=1, return_index=True
    )
    for column, rank in zip(kinds.T, first, strict=True):
        inside = [name for name, member in zip(heavy, column[:-1], strict=True) if member]
        device = cluster.device(int(rank))
        parts: dict[str, float] = {}
        for name in inside:
            for kind, nbytes in resident[name].items():
                parts[kind] = parts.get(kind, 0.0) + nbytes
        parts["activations"] = activation_peak(changes, set(inside))
        needed = sum(parts.values())
        limit = min([device.memory_B, *(limits[name] for name in inside if name in limits)])
        if needed > limit:
            listed = ", ".join(f"{kind} {size(nbytes)}" for kind, nbytes in sorted(parts.items(), key=lambda p: -p[1]))
            found.append(
                Problem(
                    f"memory of rank {rank} ({device.name}) in {', '.join(inside)}",
                    f"{size(needed)} ({listed})",
                    size(limit),
                    f"{size(needed - limit)} are lacking: shard further, recompute, or use a smaller microbatch",
                )
            )
    return found


def _members(plan: Plan, name: str) -> NDArray[np.int64]:
    row = np.zeros(plan.n_ranks, dtype=np.int64)
    row[plan.groups[name].ranks().reshape(-1)] = 1
    return row


def resident_memory(plan: Plan) -> dict[str, dict[str, float]]:
    """Memory that stays, by group and kind."""
    return {name: dict(plan.memory_B.get(name, {})) for name in plan.groups}


def activation_changes(plan: Plan) -> list[tuple[str, int]]:
    """(group, bytes taken or given back) in program order."""
    found = []
    for task in plan.tasks:
        if task.activation_B:
            op = task.op
            groups = (op.source, op.target) if isinstance(op, Transfer) else (op.group,)
            found += [(name, task.activation_B) for name in groups]
    return found


def activation_peak(changes: Sequence[tuple[str, int]], groups: AbstractSet[str]) -> float:
    """Peak of activations on a rank that is in those groups, with tasks one after the other as listed."""
    own = [size for name, size in changes if name in groups]
    return float(max(np.cumsum(own).max(), 0)) if own else 0.0
