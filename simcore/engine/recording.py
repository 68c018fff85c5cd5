"""From what the player found out to a trace."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcore.checks import resident_memory
from simcore.cluster import Cluster
from simcore.engine.grouping import Partition, first_members
from simcore.engine.lowering import Program
from simcore.engine.op_table import OpTable
from simcore.plan import Plan
from simcore.trace import Lane, Trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Played(NamedTuple):
    """One iteration: (nodes,) times in seconds, NaN where a node did not start or end."""

    start: Floats
    end: Floats


def record(
    plan: Plan,
    cluster: Cluster,
    classes: Partition,
    table: OpTable,
    program: Program,
    played: Sequence[Played],
    repeat: int,
) -> Trace:
    """One trace of all iterations; `repeat` copies of the one played, each starting where the one before ended."""
    nbytes = np.array([row.nbytes for row in table.rows], dtype=np.int64)[program.table_row[program.span_node]]
    columns: list[tuple[Any, ...]] = []
    unfinished: dict[tuple[str, int], None] = {}
    for i, times in enumerate(played):
        start, end = times.start[program.span_node], times.end[program.span_node]
        ran = ~np.isnan(end)
        for j in np.flatnonzero(~ran):
            unfinished[(plan.tasks[program.span_task[j]].id, int(program.span_class[j]))] = None
        columns.append((program.span_task[ran], program.span_class[ran], start[ran], end[ran], nbytes[ran], i))
    task, lane, start, end, size, iteration = _repeated(columns, repeat)
    order = np.lexsort((lane, task, start, iteration))
    return Trace(
        plan_digest=plan.digest,
        backend="sim",
        environment=environment(cluster),
        lanes=_lanes(classes, cluster),
        task=task[order],
        iteration=iteration[order],
        lane=lane[order],
        start_s=start[order],
        end_s=end[order],
        nbytes=size[order],
        task_ids=tuple(t.id for t in plan.tasks),
        memory_B=_memory(plan, classes, program, played[0]),
        incomplete=tuple(unfinished),
        warnings=_warnings(table, unfinished),
        extra={"links": _busiest_links(cluster, classes, table, program, played[0])},
    )


def _repeated(columns: Sequence[tuple[Any, ...]], repeat: int) -> tuple[Ints, Ints, Floats, Floats, Ints, Ints]:
    if repeat > 1:
        task, lane, start, end, size, _ = columns[0]
        length = float(end.max(initial=0.0))
        columns = [(task, lane, start + i * length, end + i * length, size, i) for i in range(repeat)]
    task, lane, start, end, size = (np.concatenate([c[k] for c in columns]) for k in range(5))
    iteration = np.concatenate([np.full(len(c[0]), c[5], dtype=np.int64) for c in columns])
    return task, lane, start, end, size, iteration


def environment(cluster: Cluster) -> dict[str, Any]:
    """What explains the numbers: devices with their peaks, memory, price and power."""
    devices = {
        d.name: {
            "memory_B": d.memory_B,
            "flop_per_s": dict(d.flop_per_s),
            "price_usd_per_hour": d.price_usd_per_hour,
            "power_W": d.power_W,
        }
        for d in cluster.devices
    }
    return {"path": "simulated", "cluster": cluster.name, "devices": devices}


def _lanes(classes: Partition, cluster: Cluster) -> tuple[Lane, ...]:
    order = np.argsort(classes.ranks, kind="stable")
    bounds = np.flatnonzero(np.diff(classes.ranks[order])) + 1
    return tuple(_lane(members, cluster) for members in np.split(order, bounds))


def _lane(members: Ints, cluster: Cluster) -> Lane:
    breaks = np.flatnonzero(np.diff(members) != 1)
    firsts = members[np.concatenate([[0], breaks + 1])]
    lasts = members[np.concatenate([breaks, [len(members) - 1]])]
    first = int(members[0])
    label = f"rank {first}" if len(members) == 1 else f"rank {first} and {len(members) - 1} like it"
    ranks = tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))
    return Lane(label=label, device=cluster.device(first).name, ranks=ranks)


def _memory(plan: Plan, classes: Partition, program: Program, played: Played) -> tuple[dict[str, float], ...]:
    """Resident memory by kind, and the peak of activations, on each lane."""
    peaks = _activation_peaks(plan, classes, program, played)
    resident = resident_memory(plan)
    heavy = [name for name, kinds in resident.items() if kinds]
    inside = {name: set(classes.ranks[plan.groups[name].ranks().reshape(-1)].tolist()) for name in heavy}
    out = []
    for c in range(classes.n_classes):
        kinds: dict[str, float] = {}
        for name, members in inside.items():
            for kind, size in resident[name].items() if c in members else ():
                kinds[kind] = kinds.get(kind, 0.0) + size
        kinds["activations"] = float(peaks[c])
        out.append(kinds)
    return tuple(out)


def _activation_peaks(plan: Plan, classes: Partition, program: Program, played: Played) -> Floats:
    """(classes,) what is taken at a start counts from then on, what is given back at an end is gone by then."""
    by_task = np.array([t.activation_B for t in plan.tasks], dtype=np.float64)
    delta = by_task[program.span_task]
    start, end = played.start[program.span_node], played.end[program.span_node]
    at = np.where(delta > 0, start, end)
    some = (delta != 0) & ~np.isnan(at)
    delta, at, c = delta[some], at[some], program.span_class[some]
    order = np.lexsort((delta, at, c))  # at one time, what is given back goes first
    delta, c = delta[order], c[order]
    total = np.cumsum(delta)
    peaks = np.zeros(classes.n_classes)
    starts = np.flatnonzero(np.concatenate([[True], c[1:] != c[:-1]])) if len(c) else np.empty(0, dtype=np.int64)
    for i, first in enumerate(starts):
        last = starts[i + 1] if i + 1 < len(starts) else len(c)
        before = total[first - 1] if first else 0.0
        peaks[c[first]] = max(float((total[first:last] - before).max()), 0.0)
    return peaks


def _warnings(table: OpTable, unfinished: dict[tuple[str, int], None]) -> tuple[str, ...]:
    found = {
        f"outside the range of its measurements: {e.source}" for r in table.rows if (e := r.estimate) and e.extrapolated
    }
    out = sorted(found)
    if unfinished:
        out.append(f"{len(unfinished)} parts of tasks never ended, the first of {next(iter(unfinished))[0]}")
    return tuple(out)


def _busiest_links(
    cluster: Cluster, classes: Partition, table: OpTable, program: Program, played: Played, shown: int = 10
) -> list[dict[str, Any]]:
    """Shared links by the share of the iteration in which they would be busy at full rate; each stands for its class."""
    makespan = float(np.nanmax(played.end, initial=0.0))
    counts = np.bincount(program.table_row, minlength=len(table.rows))
    carried: dict[int, float] = {}
    for row, count in zip(table.rows, counts.tolist(), strict=True):
        for link, weight in row.links.items():
            carried[link] = carried.get(link, 0.0) + weight * row.work * count
    representatives = first_members(classes.links)
    alike = np.bincount(classes.links)
    rows: list[dict[str, Any]] = []
    for link, size in carried.items():
        first = representatives[link]
        if first >= len(cluster.fabric.capacity_B_per_s):  # cores
            continue
        seconds = size / float(cluster.fabric.capacity_B_per_s[first])
        busy = seconds / makespan if makespan else 0.0
        name = cluster.fabric.link_name(first)
        rows.append({"link": name, "alike": int(alike[link]), "nbytes": size, "busy": busy})
    rows.sort(key=lambda r: (-r["busy"], r["link"]))
    return rows[:shown]
