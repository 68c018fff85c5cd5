"""QSync: some classes of devices compute in fewer bits what speed and memory ask for, where that disturbs training least.

Zhao et al., IPDPS 2024. A class is planned unless `precision` holds it. Of several classes the fastest (whose kernels take the
least time where each operator has its fastest precision) is held in float32 by default, unless `memory` limits it: it is there to
train, and others are to keep up with it. A single class is planned. On planned classes operators that `keep` names stay float32.
An iteration may take as long as with the fastest precisions that fit, times 1 + `tolerance`: the last per cent of speed is bought
with most of the disturbance, and predictions do not know it that well.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from costmodels.precision import BITS, PRECISIONS, of_device
from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.qsync.allocator import Allocation
from simcore.qsync.candidates import HEADS, check, held_precisions, restricted
from simcore.qsync.common import Common, Precision, check_casts, even_batch, memory_limits, other_workload, tables
from simcore.qsync.fitting import When, fitting
from simcore.qsync.indicator import GAMMA, Indicator, Table, sensitivities
from simcore.qsync.local import Ints, LocalGraph
from simcore.qsync.peak import memory_B
from simcore.qsync.plans import DeviceClass, device_classes, precision_plan
from simcore.qsync.replay import Replayer, replayer
from simcore.qsync.search_state import ClassToPlan
from simcore.qsync.settings import Setting
from simcore.qsync.shipped import statistics_of
from simcore.qsync.statistics import Statistics
from simcore.workloads.operator_training import OperatorTraining


class Params(Common):
    """How precisions are chosen."""

    precision: dict[str, Literal[Precision, "planned"]] = Field(
        default_factory=dict,
        description="By device: one precision for all its operators, or planned. Default: the fastest of several devices float32, "
        "others (and any that `memory` limits) planned.",
    )
    precisions: list[Precision] | None = Field(
        None,
        min_length=1,
        description="What planned operators may compute in, besides float32; default: all that devices have.",
    )
    keep: list[str] = Field(
        list(HEADS),
        description="Operators of planned devices that stay float32: parts of their names, or patterns with *.",
    )
    indicator: Indicator = Field("theory", description="How the disturbance of training is measured.")
    gamma: float = Field(GAMMA, ge=0.0, description="Weight of disturbance in the forward pass.")
    tolerance: float = Field(
        0.02, ge=0.0, le=10.0, description="How much longer than the fastest an iteration may take: 0.05 is 5 %."
    )
    exact: When = Field(
        "auto",
        description="Solve for the optimum as well, for up to a minute; auto: of at most 14 operators to choose for.",
    )


def plan(
    workload: object,
    cluster: Cluster,
    cost: Costs,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,  # noqa: ARG001 - the replay is the simulation in closed form
    progress: Progress | None = None,  # noqa: ARG001 - seconds
) -> Plan:
    """The plan. `decisions["predicted"]` compares it with uniform plans, that keep what `keep` names in float32 too.

    Raises `PlanError` for what does not suit workload and cluster, `DataError` for statistics that do not suit the model,
    `DoesNotFit` where nothing fits a class's memory.
    """
    if not isinstance(workload, OperatorTraining):
        raise other_workload("qsync")
    classes = device_classes(cluster)
    check_casts(params, classes)
    kept = check(workload.graph, classes, params.precision, params.precisions or (), params.keep)
    limits = memory_limits(params.memory, classes)
    batch = even_batch(workload, cluster.n_ranks)
    whole = {c.name: tables(workload, c, batch, cost, params) for c in classes}
    held = held_precisions(whole, params.precision, params.memory)
    statistics = statistics_of(workload, batch)
    to_plan = [
        ClassToPlan(
            name=c.name,
            local=restricted(whole[c.name], held.get(c.name), kept, params.precisions),
            omega=_omega(workload, statistics, c, params),
            share=len(c.ranks) / cluster.n_ranks,
            limit_B=limits[c.name],
        )
        for c in classes
    ]
    replays = replayer([c.local for c in to_plan], cluster, cost)
    found, settings, exactly = fitting(to_plan, replays, tolerance=params.tolerance, exact=params.exact)
    chosen = {c.name: s.chosen(c.local) for c, s in zip(to_plan, settings, strict=True)}
    decisions: dict[str, Any] = {
        "system": "qsync",
        "rounding": params.rounding,
        "scaling": params.scaling,
        "casts": params.casts,
        "held": held,
        "indicator": params.indicator,
        "statistics": {"source": statistics.source, "measured": statistics.measured, "samples": statistics.samples},
        "memory_limit_B": limits,
        "counts": {name: _counts(of) for name, of in chosen.items()},
        "predicted": {
            **_predicted(to_plan, replays, settings),
            "uniform": {p: _predicted(to_plan, replays, s) for p, s in _uniform(to_plan).items()},
        },
        "search": {**_searched(found), **exactly},
    }
    return precision_plan(workload, classes, whole, chosen, decisions=decisions)


def _omega(workload: OperatorTraining, statistics: Statistics, of: DeviceClass, params: Params) -> Table:
    """Sensitivities of the operators on the devices of a class."""
    has = of_device(of.device)
    return sensitivities(workload.graph, statistics, has, params.indicator, gamma=params.gamma, seed=workload.seed)


def _searched(found: Allocation) -> dict[str, Any]:
    return {
        "T0": found.initial_s,
        "initial_variance": found.initial_variance,
        "recovered": found.recovered,
        "rejected": found.rejected,
        "refined": found.refined,
        "replays": found.replays,
        "start": found.start,
    }


def _uniform(classes: Sequence[ClassToPlan]) -> dict[str, list[Setting]]:
    """Settings of all classes for each precision that a planned class has: what is free is in it, or in the next wider one."""
    free = [p for p in range(len(PRECISIONS)) if any(c.local.allowed[c.free, p].any() for c in classes)]
    return {PRECISIONS[p]: [c.setting_of(_nearest(c.local, p)) for c in classes] for p in free}


def _nearest(local: LocalGraph, precision: int) -> Ints:
    """(n,) the precision, or the next wider one that is allowed, or the widest that is."""
    order = [*range(precision, len(PRECISIONS)), *reversed(range(precision))]
    enough = [p for p in order if p < precision or BITS[PRECISIONS[p]] >= BITS[PRECISIONS[precision]]]
    found: Ints = np.array(enough, dtype=np.int64)[local.allowed[:, enough].argmax(axis=1)]
    return found


def _predicted(classes: Sequence[ClassToPlan], replays: Replayer, settings: Sequence[Setting]) -> dict[str, Any]:
    return {
        "iteration_s": replays.replay(settings).iteration_s,
        "memory_B": {c.name: memory_B(c.local, s) for c, s in zip(classes, settings, strict=True)},
        "variance": sum(c.variance(s) for c, s in zip(classes, settings, strict=True)),
    }


def _counts(chosen: Mapping[str, str]) -> dict[str, int]:
    precisions = list(chosen.values())
    return {p: precisions.count(p) for p in PRECISIONS if p in precisions}
