"""A trace out of what the ranks of a run wrote down."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from real.arrivals import begun_together
from real.here import path_taken, versions
from real.load import taken_cores
from simcore.cluster import Cluster
from simcore.engine.recording import environment
from simcore.plan import Plan
from simcore.trace import Lane, Trace

DISTURBED = 0.05
"""Share of the ranks' time that others may take before the trace warns."""

MEMORY = {True: "allocated", False: "resident set growth"}
"""How a rank's memory is measured with and without a GPU."""


def trace_of(plan: Plan, cluster: Cluster, results: list[Mapping[str, Any]]) -> Trace:
    """One lane for each rank, from its `pieces` (task, iteration, start, end, bytes), `bounds` of iterations, `spent` and memory.

    Time 0 is when the first rank began its first iteration; ranks of a host share a clock. Collectives begin with the last arrival.
    """
    origin = min(r["bounds"][0][0] for r in results)
    position = plan.index
    rows = [
        (int(i), start - origin, position[task], rank, end - origin, int(size))
        for rank, pieces in enumerate(begun_together(plan, results))
        for task, i, start, end, size in pieces
        if i >= 0
    ]
    rows.sort()
    ends = {i: max(r["bounds"][i][1] for r in results) - origin for i in range(len(results[0]["bounds"]))}
    columns = list(zip(*rows, strict=True))
    taken = taken_cores([r["spent"] for r in results], os.cpu_count() or 1)
    lanes = tuple(Lane(label=f"rank {r}", device=cluster.device(r).name, ranks=((r, r),)) for r in range(plan.n_ranks))
    return Trace(
        plan_digest=plan.digest,
        backend="real",
        environment={
            **environment(cluster),
            "path": path_taken(),
            "versions": versions(),
            "cpu_count": os.cpu_count(),
            "cores_taken_by_others": taken,
        },
        lanes=lanes,
        task=np.array(columns[2], dtype=np.int64),
        iteration=np.array(columns[0], dtype=np.int64),
        lane=np.array(columns[3], dtype=np.int64),
        start_s=np.array(columns[1], dtype=np.float64),
        end_s=np.array(columns[4], dtype=np.float64),
        nbytes=np.array(columns[5], dtype=np.int64),
        task_ids=tuple(t.id for t in plan.tasks),
        memory_B=tuple(_memory(r) for r in results),
        warnings=_warnings(taken, plan.n_ranks),
        extra={
            "loss": np.mean([r["losses"] for r in results], axis=0).tolist(),
            "iteration_end_s": list(ends.values()),
        },
    )


def _memory(result: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of tensors where they were counted, otherwise what the process grew by."""
    if result.get("tensors_B") is not None:
        return {MEMORY[True]: float(result["tensors_B"])}
    return {MEMORY[torch.cuda.is_available()]: float(result["peak_B"])}


def is_disturbed(taken: float | None, n_ranks: int) -> bool:
    """Whether other programs took so many cores from the ranks that what was measured is too long."""
    return taken is not None and taken > DISTURBED * n_ranks


def _warnings(taken: float | None, n_ranks: int) -> tuple[str, ...]:
    if not is_disturbed(taken, n_ranks):
        return ()
    return (f"other programs took {taken:.2f} cores from the {n_ranks} ranks: what was measured is too long",)
