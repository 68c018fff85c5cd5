"""What QSync's planner may choose from: classes that are held in one precision, operators that stay float32."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from costmodels.operator_graph import OperatorGraph
from costmodels.precision import ADJUSTABLE, PRECISIONS, of_device
from simcore.errors import PlanError, Problem
from simcore.qsync.common import uniform
from simcore.qsync.local import FLOAT32, INDEX, LocalGraph
from simcore.qsync.plans import DeviceClass
from simcore.validation import suggestion

HEADS = ("fc", "classifier", "qa_outputs", "pooler", "lm_head")
"""Modules that QSync's authors keep in float32: classifiers, which turn features into what the loss reads."""


def check(
    graph: OperatorGraph,
    classes: Sequence[DeviceClass],
    precision: Mapping[str, str],
    precisions: Sequence[str],
    keep: Sequence[str],
) -> frozenset[str]:
    """Names of the operators that stay float32. Raises `PlanError` with everything that names nothing, or what a device lacks."""
    has = {c.name: of_device(c.device) for c in classes}
    problems = []
    for name, asked in precision.items():
        if name not in has:
            advice = suggestion(name, list(has)) or "Name a device of the cluster."
            problems.append(Problem(f"planner.precision.{name}", name, ", ".join(has), advice))
        elif asked not in ("planned", *has[name]):
            advice = f"{name} does not compute in it; planned chooses among what it has."
            problems.append(Problem(f"planner.precision.{name}", asked, ", ".join(("planned", *has[name])), advice))
    anywhere = [p for p in PRECISIONS if any(p in of for of in has.values())]
    for p in [p for p in precisions if p not in anywhere]:
        problems.append(Problem("planner.precisions", p, ", ".join(anywhere), "No device has it."))
    names = [o.name for o in graph if o.kind in ADJUSTABLE]
    matched = {pattern: {n for n in names if _matches(n, pattern)} for pattern in keep}
    for pattern in [p for p in keep if not matched[p] and p not in HEADS]:
        advice = suggestion(pattern, names) or f"They are called like {names[0]}."
        problems.append(Problem("planner.keep", pattern, "(parts of) names of adjustable operators", advice))
    if problems:
        raise PlanError("precisions that cannot be planned", problems)
    return frozenset().union(*matched.values())


def _matches(name: str, pattern: str) -> bool:
    """A pattern is of the whole name, or names modules in it: "pooler" is in "bert.pooler.dense", not in "poolers"."""
    return fnmatchcase(name, pattern) or f".{pattern}." in f".{name}.".replace("/", ".")


def held_precisions(
    locals_: Mapping[str, LocalGraph], precision: Mapping[str, str], limited: Collection[str]
) -> dict[str, str]:
    """The precision of each class that is not planned. `limited`: classes whose memory was given."""
    held = {name: p for name, p in precision.items() if p != "planned"}
    seconds = {name: _fastest_s(local) for name, local in locals_.items()}
    fastest = min(seconds, key=lambda name: seconds[name])
    if len(locals_) > 1 and fastest not in precision and fastest not in limited:
        held[fastest] = "float32"
    return held


def _fastest_s(local: LocalGraph) -> float:
    """Kernels of adjustable operators, each in its fastest precision, without casts."""
    return float(np.nanmin(local.own_s[local.adjustable].sum(axis=1), axis=1).sum())


def restricted(
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
