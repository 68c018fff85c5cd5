"""What a run amounts to, computed from the plan and the trace alone, so that it cannot know which world made them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from simcore.engine.kinds import parts
from simcore.errors import Incomparable, Problem
from simcore.plan import Plan
from simcore.reporting.critical_path import Contribution, contributions, critical_path
from simcore.reporting.idle import occupation
from simcore.reporting.metrics import metrics
from simcore.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak memory of ranks that are alike: bytes by kind, and what the device has (None where nobody said)."""

    lane: str
    ranks: int
    device: str
    used_B: float
    capacity_B: float | None
    kinds_B: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Times in seconds, sizes in bytes, shares as fractions. `parts_s` and `idle_s` are of an average rank and iteration.

    `error` maps metrics to the relative error that four of five predictions like it stay within, where that is known; `libraries`
    kinds of kernels to the library that is assumed to run them.
    """

    plan: str
    plan_digest: str
    backend: str
    path: str
    ranks: int
    decisions: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    parts_s: Mapping[str, float]
    critical_path: tuple[Contribution, ...]
    idle_s: Mapping[str, float]
    memory: tuple[Memory, ...]
    links: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]
    error: Mapping[str, float] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the keys are stable."""
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def report(plan: Plan, trace: Trace) -> Report:
    """Raises `Incomparable` for a trace of another plan."""
    if trace.plan_digest != plan.digest:
        problem = Problem("plan_digest", trace.plan_digest, plan.digest, "A trace is read with the plan that made it.")
        raise Incomparable("the trace belongs to another plan", [problem])
    spent = occupation(plan, trace)
    rounds = max(len(np.unique(trace.iteration)), 1)
    memory = memory_rows(trace)
    return Report(
        plan=plan.name,
        plan_digest=plan.digest,
        backend=trace.backend,
        path=str(trace.environment.get("path", trace.backend)),
        ranks=plan.n_ranks,
        decisions=_shown(plan.decisions),
        metrics=metrics(plan, trace, spent),
        parts_s=parts_seconds(plan, trace),
        critical_path=tuple(contributions(plan, critical_path(plan, trace))),
        idle_s={cause: seconds / rounds for cause, seconds in spent.idle.items()},
        memory=memory,
        links=tuple(trace.extra.get("links", ())),
        warnings=(*trace.warnings, *_memory_warnings(memory)),
        error=trace.extra.get("error", {}),
        libraries=trace.extra.get("libraries", {}),
    )


def parts_seconds(plan: Plan, trace: Trace) -> dict[str, float]:
    """Seconds that an average rank spends in each part of an iteration, overlapped or not; in the order of the plan."""
    of_task = parts(plan)
    names = list(dict.fromkeys(of_task))
    number = np.array([names.index(name) for name in of_task], dtype=np.int64)
    weights = np.array([len(lane) for lane in trace.lanes], dtype=np.float64)
    rounds = max(len(np.unique(trace.iteration)), 1)
    spent = (trace.end_s - trace.start_s) * weights[trace.lane] / (weights.sum() * rounds)
    sums = np.bincount(number[trace.task], weights=spent, minlength=len(names)) if len(trace) else np.zeros(len(names))
    return {name: float(seconds) for name, seconds in zip(names, sums, strict=True)}


def memory_rows(trace: Trace) -> tuple[Memory, ...]:
    """Lanes put together where device and every kind agree, the fullest first."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, kinds in enumerate(trace.memory_B):
        found.setdefault((trace.lanes[i].device, json.dumps(dict(kinds), sort_keys=True)), []).append(i)
    devices = trace.environment.get("devices", {})
    rows = []
    for (device, _), lanes in found.items():
        kinds = {kind: float(size) for kind, size in trace.memory_B[lanes[0]].items()}
        capacity = devices.get(device, {}).get("memory_B")
        count = sum(len(trace.lanes[i]) for i in lanes)
        label = trace.lanes[lanes[0]].label.split(" and ")[0] + (f" and {count - 1} like it" if count > 1 else "")
        used = sum(kinds.values())
        rows.append(Memory(lane=label, ranks=count, device=device, used_B=used, capacity_B=capacity, kinds_B=kinds))
    return tuple(sorted(rows, key=lambda row: -row.used_B))


def _memory_warnings(rows: tuple[Memory, ...]) -> list[str]:
    return [
        f"{row.lane} ({row.device}) needs {row.used_B:.4g} B of memory and has {row.capacity_B:.4g} B"
        for row in rows
        if row.capacity_B is not None and row.used_B > row.capacity_B
    ]


def _shown(decisions: Mapping[str, Any], longest: int = 400) -> dict[str, Any]:
    """Decisions that a reader can take in; long lists (a bucket of every parameter) stay in the plan."""
    return {key: value for key, value in decisions.items() if len(json.dumps(value)) <= longest}
