"""A plan of one training step for chosen precisions: what profiles run, and comparisons of prediction and measurement."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costmodels import compute
from costmodels.operator_graph import OperatorGraph
from costmodels.specs import DeviceSpec, Estimate
from simcore.plan import Compute, Plan
from simcore.qsync.plans import DeviceClass, precision_plan
from simcore.qsync.tables import bucket_names, local_graph
from simcore.workloads.operator_training import OperatorTraining

MiB = 2.0**20
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Ranks that compute alike: on `device`, `batch` samples each, adjustable operators as in `precision`."""

    ranks: tuple[int, ...]
    device: DeviceSpec
    batch: int
    precision: Mapping[str, str]


class Alone:
    """Prices of kernels on a device that belongs to no cluster."""

    def compute(self, op: Compute, device: DeviceSpec) -> Estimate:
        """Sum of the op's kernels."""
        found = [compute.estimate(k, device) for k in op.kernels]
        seconds = sum(e.seconds for e in found)
        return Estimate(seconds=seconds, method=found[0].method, source=found[0].source)


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
    """One step on all parts, as planners write it; `optimizer` is a kernel of `costmodels.kernels`."""
    classes = [DeviceClass(name=name, device=p.device, ranks=np.array(p.ranks)) for name, p in parts.items()]
    buckets = bucket_names(graph, first_bucket_B, bucket_B)
    tables = {
        name: local_graph(graph, p.device, p.batch, Alone(), optimizer=optimizer, buckets=buckets)
        for name, p in parts.items()
    }
    workload = OperatorTraining(
        graph=graph,
        model=model,
        batch=None,
        global_batch=sum(len(p.ranks) * p.batch for p in parts.values()),
        optimizer=optimizer.removesuffix("_momentum"),
        momentum=MOMENTUM if optimizer == "sgd_momentum" else 0.0,
        iterations=iterations,
        statistics=None,
        base_dir=Path(),
    )
    decisions = {"system": "uniform_precision", "rounding": "nearest", "scaling": "tensor"}
    chosen = {name: p.precision for name, p in parts.items()}
    return precision_plan(workload, classes, tables, chosen, decisions=decisions)
