"""One precision for all operators of a class of devices."""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.qsync.common import (
    Common,
    Precision,
    asked_of,
    check_casts,
    check_precision,
    even_batch,
    memory_limits,
    other_workload,
    refuse_what_does_not_fit,
    tables,
    uniform,
    widened,
)
from simcore.qsync.plans import device_classes, precision_plan
from simcore.qsync.replay import replayer
from simcore.qsync.settings import setting
from simcore.workloads.operator_training import OperatorTraining


class Params(Common):
    """The precision."""

    precision: Precision | dict[str, Precision] = Field(
        "float32", description="What operators compute in, or that by device; others compute in float32."
    )


def plan(
    workload: object,
    cluster: Cluster,
    cost: Costs,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,  # noqa: ARG001 - nothing to choose between
    progress: Progress | None = None,  # noqa: ARG001 - done at once
) -> Plan:
    """The plan. An operator without the precision asked for takes the next wider one, which `decisions["widened"]` counts.

    Raises `PlanError` for what does not suit workload and cluster, `DoesNotFit` for more memory than there is.
    """
    if not isinstance(workload, OperatorTraining):
        raise other_workload("uniform_precision")
    classes = device_classes(cluster)
    check_casts(params, classes)
    check_precision(params.precision, classes)
    limits = memory_limits(params.memory, classes)
    batch = even_batch(workload, cluster.n_ranks)
    locals_ = {c.name: tables(workload, c, batch, cost, params) for c in classes}
    asked = {c.name: asked_of(params.precision, c.name) for c in classes}
    chosen = {name: uniform(local, asked[name]) for name, local in locals_.items()}
    refuse_what_does_not_fit(locals_, chosen, limits)
    found = replayer([locals_[c.name] for c in classes], cluster, cost).replay(
        [setting(locals_[c.name], chosen[c.name]) for c in classes]
    )
    decisions: dict[str, Any] = {
        "system": "uniform_precision",
        "rounding": params.rounding,
        "scaling": params.scaling,
        "casts": params.casts,
        "widened": {name: widened(chosen[name], asked[name]) for name in chosen},
        "memory_limit_B": limits,
        "predicted": {"iteration_s": found.iteration_s},
    }
    return precision_plan(workload, classes, locals_, chosen, decisions=decisions)
