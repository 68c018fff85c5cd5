"""How far off a run may be because of the estimates that its critical path is made of."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from simcore.cost import CostModel
from simcore.plan import Collective, Compute, Op, Plan, Transfer
from simcore.reporting.critical_path import Step, critical_path, meetings
from simcore.trace import Trace


def own_errors(plan: Plan, trace: Trace, cost: CostModel) -> dict[str, float]:
    """By what an estimate stands on: how far off an iteration is, as a share of it, when all such estimates err as they may.

    Estimates of one fitted table are wrong together, and so are all links; steps of the critical path count by their time. What
    has no error of its own counts as exact (a rank to itself, a link that was measured); NaN where something is not known.
    """
    path = critical_path(plan, trace)
    total = sum(step.end_s - step.start_s for step in path)
    found: dict[str, float] = {}
    known: dict[tuple[int, int], Mapping[str, float]] = {}
    for step in path:
        if step.task is None:
            continue
        op = plan.tasks[plan.index[step.task]].op
        key = (id(op), step.lane)
        if key not in known:
            known[key] = _relative(op, plan, trace, step, cost)
        for table, error in known[key].items():
            found[table] = found.get(table, 0.0) + error * (step.end_s - step.start_s) / total
    return dict(sorted(found.items()))


def _relative(op: Op, plan: Plan, trace: Trace, step: Step, cost: CostModel) -> Mapping[str, float]:
    """By table, what share of the op's time its errors make."""
    rank = trace.lanes[step.lane].ranks[0][0]
    if isinstance(op, Compute):
        return cost.errors(op, cost.cluster.device(rank))
    error = cost.demands(op, _members(op, plan, rank))[0].estimate.error
    table = "links" if isinstance(op, (Collective, Transfer)) else "stores"
    return {table: error} if error else {}


def _members(op: Op, plan: Plan, rank: int) -> NDArray[np.int64]:
    """(1, members) of the instance of an op that a rank takes part in."""
    if not isinstance(op, (Collective, Transfer)):
        return np.array([[rank]], dtype=np.int64)
    found: NDArray[np.int64] = meetings(plan, op)
    return found[np.flatnonzero((found == rank).any(axis=1))[:1]]
