"""The chain of tasks that decides how long an iteration takes.

From the span that ends last, back to what it waited for: the dependency, the task before it on its stream or, in a collective
or a transfer, whatever the last member to arrive waited for. Of several the one that ended last was binding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simcore.engine.kinds import kind_of
from simcore.plan import Collective, Op, Plan, Transfer
from simcore.reporting.idle import iteration_bounds
from simcore.trace import Trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WAITING = "(waiting)"


@dataclass(frozen=True, slots=True)
class Step:
    """One task on one lane, or `WAITING` (task None) between two, while it decided the time."""

    task: str | None
    lane: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What tasks of one kind add to the critical path."""

    kind: str
    count: int
    seconds: float
    share: float


def contributions(plan: Plan, path: Sequence[Step]) -> list[Contribution]:
    """The path by kind of task, largest first."""
    total = sum(step.end_s - step.start_s for step in path)
    seconds: dict[str, float] = {}
    count: dict[str, int] = {}
    for step in path:
        kind = WAITING if step.task is None else kind_of(plan.tasks[plan.index[step.task]])
        seconds[kind] = seconds.get(kind, 0.0) + step.end_s - step.start_s
        count[kind] = count.get(kind, 0) + 1
    ordered = sorted(seconds, key=lambda kind: (-seconds[kind], kind))
    return [
        Contribution(kind=k, count=count[k], seconds=seconds[k], share=seconds[k] / total if total else 0.0)
        for k in ordered
    ]


def critical_path(plan: Plan, trace: Trace, iteration: int = -1) -> list[Step]:
    """Steps in order of time that fill an iteration (default: the last) from its start to its end."""
    bounds = iteration_bounds(trace)
    if len(bounds) < 2:
        return []
    i = iteration % (len(bounds) - 1)
    spans = _Spans.of(trace, i)
    ready, before = _arrivals(plan, spans, len(trace.lanes))
    partners = Partners(plan, trace)
    steps: list[Step] = []
    at, until = int(np.argmax(spans.end)), float(bounds[i + 1])
    while True:
        task = int(spans.task[at])
        member = _last_to_arrive(plan.tasks[task].op, spans, at, ready, partners)
        waited = int(before[member])
        since = float(spans.end[waited]) if waited >= 0 else float(bounds[i])
        start = min(max(float(spans.start[at]), since), until)
        steps.append(Step(trace.task_ids[task], int(spans.lane[at]), start, until))
        until = min(start, max(since, float(bounds[i])))
        if start > until:
            steps.append(Step(None, int(spans.lane[at]), until, start))
        if waited < 0:
            return steps[::-1]
        at = waited


def _last_to_arrive(op: Op, spans: "_Spans", at: int, ready: Floats, partners: "Partners") -> int:
    """The member of this span's collective or transfer that was ready last; the span itself for anything else."""
    if not isinstance(op, (Collective, Transfer)):
        return at
    first, last = spans.of_task(int(spans.task[at]))
    members = first + np.flatnonzero(partners.of(op, int(spans.lane[at]))[spans.lane[first:last]])
    return int(members[np.argmax(ready[members])])


@dataclass(frozen=True, slots=True)
class _Spans:
    """One row for each (task, lane) of an iteration, ordered by task, then lane; pieces of a task are put together."""

    task: Ints
    lane: Ints
    start: Floats
    end: Floats

    @classmethod
    def of(cls, trace: Trace, iteration: int) -> "_Spans":
        at = np.flatnonzero(trace.iteration == iteration)
        key = trace.task[at] * len(trace.lanes) + trace.lane[at]
        order = np.argsort(key, kind="stable")
        at, key = at[order], key[order]
        first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        start = np.minimum.reduceat(trace.start_s[at], first)
        end = np.maximum.reduceat(trace.end_s[at], first)
        return cls(trace.task[at][first], trace.lane[at][first], start, end)

    def of_task(self, task: int) -> tuple[int, int]:
        """Rows of a task: first, and one past the last."""
        first, last = np.searchsorted(self.task, [task, task + 1])
        return int(first), int(last)


def _arrivals(plan: Plan, spans: _Spans, n_lanes: int) -> tuple[Floats, Ints]:
    """For each row: when the last thing it waits for ended, and which row that is (-1: none)."""
    edges = [_stream_edges(plan, spans), _dependency_edges(plan, spans, n_lanes)]
    waits, on = (np.concatenate([e[k] for e in edges]) for k in (0, 1))
    order = np.lexsort((on, spans.end[on], waits))
    waits, on = waits[order], on[order]
    last = np.concatenate([waits[1:] != waits[:-1], [True]]) if len(waits) else np.empty(0, dtype=np.bool_)
    ready, before = np.full(len(spans.task), -np.inf), np.full(len(spans.task), -1, dtype=np.int64)
    ready[waits[last]] = spans.end[on[last]]
    before[waits[last]] = on[last]
    return ready, before


def _stream_edges(plan: Plan, spans: _Spans) -> tuple[Ints, Ints]:
    """(row, row before it on the same stream of the same lane)."""
    names: dict[str, int] = {}
    of_task = np.array([names.setdefault(task.op.stream, len(names)) for task in plan.tasks], dtype=np.int64)
    stream = of_task[spans.task]
    order = np.lexsort((spans.task, stream, spans.lane))
    a, b = order[:-1], order[1:]
    same = (spans.lane[a] == spans.lane[b]) & (stream[a] == stream[b])
    return b[same], a[same]


def _dependency_edges(plan: Plan, spans: _Spans, n_lanes: int) -> tuple[Ints, Ints]:
    """(row, row of a predecessor): the one on the same lane, or the one that ended last where the lane has none."""
    counts = np.array([len(task.after) for task in plan.tasks], dtype=np.int64)
    after = np.array([plan.index[a] for task in plan.tasks for a in task.after], dtype=np.int64)
    first = np.concatenate([[0], np.cumsum(counts)])
    n = counts[spans.task]
    row = np.repeat(np.arange(len(spans.task)), n)
    within = np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n)
    wanted = after[first[spans.task[row]] + within] if len(row) else np.empty(0, dtype=np.int64)
    key = spans.task * n_lanes + spans.lane
    found = np.minimum(np.searchsorted(key, wanted * n_lanes + spans.lane[row]), len(key) - 1)
    here = key[found] == wanted * n_lanes + spans.lane[row]
    latest = _latest_of_task(spans, len(plan.tasks))
    on = np.where(here, found, latest[wanted])
    return row[on >= 0], on[on >= 0]


def _latest_of_task(spans: _Spans, n_tasks: int) -> Ints:
    """The row of each task that ended last, -1 where none did."""
    out = np.full(n_tasks, -1, dtype=np.int64)
    order = np.argsort(spans.end, kind="stable")
    out[spans.task[order]] = order
    return out


class Partners:
    """Which lanes meet in the same collective or transfer."""

    def __init__(self, plan: Plan, trace: Trace) -> None:
        self._plan = plan
        self._first = [lane.ranks[0][0] for lane in trace.lanes]
        self._lane_of = np.full(plan.n_ranks, -1, dtype=np.int64)
        for i, lane in enumerate(trace.lanes):
            for first, last in lane.ranks:
                self._lane_of[first : last + 1] = i
        self._instances: dict[object, Ints] = {}
        self._masks: dict[object, NDArray[np.bool_]] = {}

    def of(self, op: Collective | Transfer, lane: int) -> NDArray[np.bool_]:
        """True for the lanes (lanes,) that meet `lane`, itself included."""
        place = (op.source, op.target) if isinstance(op, Transfer) else (op.group, op.along)
        mask = self._masks.get((place, lane))
        if mask is None:
            if place not in self._instances:
                self._instances[place] = meetings(self._plan, op)
            instances = self._instances[place]
            mine = (instances == self._first[lane]).any(axis=1)
            lanes = self._lane_of[instances[mine].reshape(-1)]
            mask = self._masks[(place, lane)] = np.zeros(len(self._first), dtype=np.bool_)
            mask[lanes[lanes >= 0]] = True
            mask[lane] = True
        return mask


def meetings(plan: Plan, op: Collective | Transfer) -> Ints:
    """Ranks that meet, one instance a row."""
    if isinstance(op, Collective):
        return plan.groups[op.group].instances(op.along)
    ends = [plan.groups[name].ranks().reshape(-1) for name in (op.source, op.target)]
    return np.stack(ends, axis=1)
