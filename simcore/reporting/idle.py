"""Where the time of a rank goes: busy with what, and idle waiting for what.

A lane is idle while nothing of it runs on any stream. What ends an idle stretch says what it waited for: before a collective
it was the peers, before a transfer the partner (the pipeline's bubble), before a read or write the store, before a computation
a dependency on another rank, and after the last task of an iteration the end of that iteration elsewhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simcore.engine.kinds import CLASSES, COMPUTE, class_of
from simcore.plan import Collective, Compute, Plan, Transfer
from simcore.trace import Trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ROUNDING = 1e-12  # share of the run below which a remainder is that of floating point
CAUSES = ("transfer partner", "collective peers", "storage", "dependency", "end of iteration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupation:
    """Seconds of an average rank over the whole run; `busy`, `hidden` by class of op, `idle` by cause.

    `busy[COMPUTE]` is all computing; of communication and storage it is the exposed part, in which the rank did nothing
    better, and `hidden` is what other work covered. busy and idle add up to `total_s`.
    """

    total_s: float
    busy: dict[str, float]
    hidden: dict[str, float]
    idle: dict[str, float]


def iteration_bounds(trace: Trace) -> Floats:
    """Start of the first iteration and end of each: (iterations + 1,) seconds."""
    count = int(trace.iteration.max()) + 1 if len(trace) else 0
    ends = np.zeros(count)
    np.maximum.at(ends, trace.iteration, trace.end_s)
    return np.concatenate([[0.0], np.maximum.accumulate(ends)])


def occupation(plan: Plan, trace: Trace) -> Occupation:
    """Averages over ranks; a lane counts as often as it has ranks."""
    bounds = iteration_bounds(trace)
    weights = np.array([len(lane) for lane in trace.lanes], dtype=np.float64)
    share = weights / weights.sum() if len(weights) else weights
    total_s = float(bounds[-1])
    kinds = np.array([CLASSES.index(class_of(task)) for task in plan.tasks], dtype=np.int64)
    kind = kinds[trace.task] if len(trace) else np.empty(0, dtype=np.int64)
    covered, alone = np.zeros(len(trace.lanes)), {}
    upto: dict[str, Floats] = {}
    for i, name in enumerate(CLASSES):
        upto[name] = _covered(trace, kind <= i, bounds)
        alone[name] = _covered(trace, kind == i, bounds)
    busy, hidden = {}, {}
    for name in CLASSES:
        busy[name] = float(share @ (upto[name] - covered))
        hidden[name] = 0.0 if name == COMPUTE else float(share @ (alone[name] - (upto[name] - covered)))
        covered = upto[name]
    waiting = _waiting(plan, trace, bounds, share)
    rest = total_s - float(share @ covered) - sum(waiting.values())
    waiting["end of iteration"] = rest if rest > ROUNDING * total_s else 0.0
    return Occupation(total_s=total_s, busy=busy, hidden=hidden, idle={c: waiting.get(c, 0.0) for c in CAUSES})


def _covered(trace: Trace, chosen: NDArray[np.bool_], bounds: Floats) -> Floats:
    """Length of the union of the chosen spans on each lane (lanes,)."""
    rows = _Rows.of(trace, chosen, bounds)
    pieces = np.maximum(rows.end - np.maximum(rows.start, rows.open_until), 0.0)
    return np.asarray(np.bincount(rows.lane, weights=pieces, minlength=len(trace.lanes)), dtype=np.float64)


def _waiting(plan: Plan, trace: Trace, bounds: Floats, share: Floats) -> dict[str, float]:
    """Idle seconds before a span, by what the span is."""
    cause_of = np.array([CAUSES.index(_cause(task.op)) for task in plan.tasks], dtype=np.int64)
    rows = _Rows.of(trace, np.ones(len(trace), dtype=np.bool_), bounds)
    gaps = np.maximum(rows.start - rows.open_until, 0.0) * share[rows.lane]
    found = np.bincount(cause_of[rows.task] if len(rows.task) else rows.task, weights=gaps, minlength=len(CAUSES))
    return {cause: float(seconds) for cause, seconds in zip(CAUSES, found, strict=True)}


def _cause(op: object) -> str:
    if isinstance(op, Compute):
        return "dependency"
    if isinstance(op, Collective):
        return "collective peers"
    return "transfer partner" if isinstance(op, Transfer) else "storage"


@dataclass(frozen=True, slots=True)
class _Rows:
    """Spans ordered by lane, iteration and start, with the time until which earlier ones of lane and iteration last."""

    task: Ints
    lane: Ints
    start: Floats
    end: Floats
    open_until: Floats

    @classmethod
    def of(cls, trace: Trace, chosen: NDArray[np.bool_], bounds: Floats) -> "_Rows":
        at = np.flatnonzero(chosen)
        at = at[np.lexsort((trace.task[at], trace.start_s[at], trace.iteration[at], trace.lane[at]))]
        lane, iteration, end = trace.lane[at], trace.iteration[at], trace.end_s[at]
        open_until = _open_until(lane * len(bounds) + iteration, end, bounds[iteration])
        return cls(trace.task[at], lane, trace.start_s[at], end, open_until)


def _open_until(row: Ints, end: Floats, begin: Floats) -> Floats:
    """For spans sorted by row: the latest end of those before it in its row, `begin` for the first. All (n,)."""
    n = len(end)
    if n == 0:
        return begin
    by_end = np.argsort(end, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[by_end] = np.arange(n)
    latest = np.maximum.accumulate(row * n + place)  # integers, so that a new row starts afresh, exactly
    first = np.concatenate([[True], row[1:] != row[:-1]])
    before = end[by_end[np.concatenate([[0], latest[:-1]]) % n]]
    return np.where(first, begin, np.maximum(before, begin))
