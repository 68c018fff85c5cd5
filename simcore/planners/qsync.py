"""QSync: some classes of devices compute in fewer bits what speed and memory ask for, where that disturbs training least.

Zhao et al., IPDPS 2024. A class is planned unless `precision` holds it. Of several classes the fastest (whose kernels take the
least time where each operator has its fastest precision) is held in float32 by default, unless `memory` limits it: it is there to
train, and others are to keep up with it. A single class is planned. On planned classes operators that `keep` names stay float32.
An iteration may take as long as with the fastest precisions that fit, times 1 + `tolerance`: the last per cent of speed is bought
with most of the disturbance, and predictions do not know it that well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
from pydantic import Field

from costmodels.operator_graph import OperatorGraph
from costmodels.precision import ADJUSTABLE, BITS, PRECISIONS, of_device
from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.errors import DoesNotFit, PlanError, Problem
from simcore.plan import Plan
from simcore.planners.uniform_precision import (
    Common,
    Precision,
    check_casts,
    even_batch,
    memory_limits,
    other_workload,
    tables,
    uniform,
)
from simcore.progress import Progress
from simcore.qsync.allocator import Allocation, allocate
from simcore.qsync.indicator import GAMMA, Indicator, sensitivities
from simcore.qsync.local import FLOAT32, INDEX, Ints, LocalGraph
from simcore.qsync.peak import excess_B, memory_B
from simcore.qsync.plans import DeviceClass, device_classes, precision_plan
from simcore.qsync.replay import Replayer, replayer
from simcore.qsync.search_state import ClassToPlan
from simcore.qsync.settings import Setting, setting
from simcore.qsync.shipped import statistics_of
from simcore.quantity import size
from simcore.validation import suggestion
from simcore.workloads.operator_training import OperatorTraining

HEADS = ("fc", "classifier", "qa_outputs", "pooler", "lm_head")
"""Modules that QSync's authors keep in float32: classifiers, which turn features into what the loss reads."""

FEW = 14
"""Adjustable operators up to which `exact: auto` solves for the optimum as well."""


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
    exact: Literal["auto", "always", "never"] = Field(
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
    kept = check(workload.graph, classes, params)
    limits = memory_limits(params.memory, classes)
    batch = even_batch(workload, cluster.n_ranks)
    whole = {c.name: tables(workload, c, batch, cost, params) for c in classes}
    held = held_precisions(whole, classes, params)
    statistics = statistics_of(workload, batch)
    to_plan = [
        ClassToPlan(
            name=c.name,
            local=_restricted(whole[c.name], held.get(c.name), kept, params.precisions),
            omega=sensitivities(
                workload.graph,
                statistics,
                of_device(c.device),
                params.indicator,
                gamma=params.gamma,
                seed=workload.seed,
            ),
            share=len(c.ranks) / cluster.n_ranks,
            limit_B=limits[c.name],
        )
        for c in classes
    ]
    replays = replayer([c.local for c in to_plan], cluster, cost)
    found, settings, exactly = _fitting(to_plan, replays, params)
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


def check(graph: OperatorGraph, classes: Sequence[DeviceClass], params: Params) -> frozenset[str]:
    """Names of the operators that stay float32. Raises `PlanError` with everything that names nothing, or what a device lacks."""
    has = {c.name: of_device(c.device) for c in classes}
    problems = []
    for name, precision in params.precision.items():
        if name not in has:
            advice = suggestion(name, list(has)) or "Name a device of the cluster."
            problems.append(Problem(f"planner.precision.{name}", name, ", ".join(has), advice))
        elif precision not in ("planned", *has[name]):
            advice = f"{name} does not compute in it; planned chooses among what it has."
            problems.append(Problem(f"planner.precision.{name}", precision, ", ".join(("planned", *has[name])), advice))
    anywhere = [p for p in PRECISIONS if any(p in of for of in has.values())]
    for precision in params.precisions or ():
        if precision not in anywhere:
            problems.append(Problem("planner.precisions", precision, ", ".join(anywhere), "No device has it."))
    names = [o.name for o in graph if o.kind in ADJUSTABLE]
    matched = {pattern: {n for n in names if _matches(n, pattern)} for pattern in params.keep}
    for pattern in [p for p in params.keep if not matched[p] and p not in HEADS]:
        advice = suggestion(pattern, names) or f"They are called like {names[0]}."
        problems.append(Problem("planner.keep", pattern, "(parts of) names of adjustable operators", advice))
    if problems:
        raise PlanError("precisions that cannot be planned", problems)
    return frozenset().union(*matched.values())


def _matches(name: str, pattern: str) -> bool:
    """A pattern is of the whole name, or names modules in it: "pooler" is in "bert.pooler.dense", not in "poolers"."""
    return fnmatchcase(name, pattern) or f".{pattern}." in f".{name}.".replace("/", ".")


def held_precisions(
    locals_: Mapping[str, LocalGraph], classes: Sequence[DeviceClass], params: Params
) -> dict[str, str]:
    """The precision of each class that is not planned."""
    held: dict[str, str] = {name: p for name, p in params.precision.items() if p != "planned"}
    seconds = {c.name: _fastest_s(locals_[c.name]) for c in classes}
    fastest = min(seconds, key=lambda name: seconds[name])
    if len(classes) > 1 and fastest not in params.precision and fastest not in params.memory:
        held[fastest] = "float32"
    return held


def _fastest_s(local: LocalGraph) -> float:
    """Kernels of adjustable operators, each in its fastest precision, without casts."""
    return float(np.nanmin(local.own_s[local.adjustable].sum(axis=1), axis=1).sum())


def _restricted(
    local: LocalGraph, held: str | None, kept: frozenset[str], precisions: Sequence[str] | None
) -> LocalGraph:
    """Tables that allow only what may be chosen: of a class that is held, one precision for each operator."""
    allowed = local.allowed.copy()
    if held is not None:
        chosen = uniform(local, held)
        for i in local.adjustable.tolist():
            allowed[i] = np.arange(len(PRECISIONS)) == INDEX[chosen[local.graph.operators[i].name]]
        return replace(local, allowed=allowed)
    if precisions is not None:
        allowed &= np.array([p == "float32" or p in precisions for p in PRECISIONS])
    for i in [i for i in local.adjustable.tolist() if local.graph.operators[i].name in kept]:
        allowed[i] = np.arange(len(PRECISIONS)) == FLOAT32
    return replace(local, allowed=allowed)


def _fitting(
    classes: Sequence[ClassToPlan], replays: Replayer, params: Params
) -> tuple[Allocation, tuple[Setting, ...], dict[str, Any]]:
    """What is found, what is taken and what the solver says; searched again with a larger allowance where the peak is too high."""
    while True:
        _refuse_what_nothing_fits(classes)
        found = allocate(classes, replays, tolerance=params.tolerance)
        settings, exactly = _exactly(classes, replays, found, params.exact)
        needed = {c.name: excess_B(c.local, s) for c, s in zip(classes, settings, strict=True)}
        if all(memory_B(c.local, s) <= c.limit_B for c, s in zip(classes, settings, strict=True)):
            return found, settings, exactly
        classes = [
            replace(c, local=replace(c.local, allowance_B=max(c.local.allowance_B, needed[c.name]))) for c in classes
        ]


def _refuse_what_nothing_fits(classes: Sequence[ClassToPlan]) -> None:
    problems = []
    for c in classes:
        if c.fastest is None or not c.fits(c.fastest):
            lacking = f"{size(c.least_B - c.limit_B)} are lacking: a smaller batch, or more precisions to choose from"
            given, allowed = f"at least {size(c.least_B)}", size(c.limit_B)
            problems.append(Problem(f"memory of {c.name}", given, allowed, lacking))
    if problems:
        raise DoesNotFit("no precisions fit the memory of the cluster", problems)


def _exactly(
    classes: Sequence[ClassToPlan], replays: Replayer, found: Allocation, when: str
) -> tuple[tuple[Setting, ...], dict[str, Any]]:
    """The better of what was found and what a solver finds within the same limits, and what the solver says."""
    n = sum(len(c.free) for c in classes)
    if when == "never" or n == 0 or (when == "auto" and n > FEW):
        return found.settings, {}
    from simcore.qsync.exact import exact

    best = exact(
        {c.name: c.local for c in classes},
        {c.name: c.omega for c in classes},
        {c.name: c.share for c in classes},
        {c.name: c.limit_B for c in classes},
        found.limit_s,
        replays.bucket_s,
    )
    if (
        best.status != "optimal"
    ):  # what a solver has when it is stopped depends on the machine's speed, and plans do not
        return found.settings, {"exact": {"status": best.status}}
    better = best.keeps_limits and best.variance < found.variance * (1 - 1e-9)
    gap = (found.variance - best.bound) / found.variance if found.variance else 0.0
    said = {"bound": best.bound, "gap_of_search": max(gap, 0.0), "status": best.status, "taken": better}
    if not better:
        return found.settings, {"exact": said}
    return tuple(setting(c.local, best.chosen[c.name]) for c in classes), {"exact": said}


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
