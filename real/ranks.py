"""A plan's ranks as processes of this machine, under torch's elastic launcher."""

import json
import tempfile
from pathlib import Path

from costmodels.precision import of_device
from real.here import path_taken
from real.launch import launch
from real.precision.placing import HAS
from real.traces import trace_of
from real.worker import PLAN, RESULT
from simcore.cluster import Cluster
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.trace import Trace


def run_ranks(plan: Plan, cluster: Cluster, *, progress: Progress | None = None) -> Trace:
    """The trace of `real.worker` on every rank. Raises `CannotRun` with what a worker said before it failed."""
    if progress:
        progress(0.0, f"starting {plan.n_ranks} processes, {path_taken()}")
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        plan.save(folder / PLAN)
        (folder / HAS).write_text(json.dumps([of_device(cluster.device(r)) for r in range(plan.n_ranks)]))
        launch("real.worker", plan.n_ranks, folder, progress=progress)
        results = [json.loads((folder / RESULT.format(rank=r)).read_text()) for r in range(plan.n_ranks)]
    if progress:
        progress(1.0, "done")
    return trace_of(plan, cluster, results)
