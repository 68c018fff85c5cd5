"""A picture of a trace: lanes top down, a row for each stream, colours by part of the iteration."""

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costmodels.files import write_atomically
from simcore.engine.kinds import CLASSES, class_of, parts
from simcore.plan import Plan
from simcore.reporting import rlhf_timeline
from simcore.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LANES = 8
MOST_ITERATIONS = 2
THIN = 0.01  # spans shorter than this share of the picture get no outline, which would cover them
PIXEL = 1e-3  # of the picture, about
FAINT = 0.01  # streams that are busy for less of the picture in every lane are left out

COLOURS: Mapping[str, str] = {
    "forward": "#4c78a8",
    "backward": "#1b3a5c",
    "optimizer": "#9ecae9",
    "gradients": "#e45756",
    "parameters": "#f58518",
    "pipeline": "#54a24b",
    "tensor parallel": "#eeca3b",
    "context parallel": "#b279a2",
    "reads": "#8c6d4f",
    "writes": "#5f4632",
}
SPARE = ("#72b7b2", "#ff9da6", "#9d755d", "#bab0ac", "#d67195", "#439894")


def draw(plan: Plan, trace: Trace, path: Path, *, lanes: int = MOST_LANES, iterations: int = MOST_ITERATIONS) -> None:
    """Write the picture as PNG, whole or not at all; the same bytes for the same trace."""
    figure = picture(plan, trace, lanes=lanes, iterations=iterations)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def picture(plan: Plan, trace: Trace, *, lanes: int = MOST_LANES, iterations: int = MOST_ITERATIONS) -> "Figure":
    """The figure, for notebooks. At most `lanes` lanes, spread evenly, and the first `iterations`; it says what it leaves out."""
    from matplotlib.figure import Figure

    chosen = _chosen(plan, trace, lanes)
    until = _shown_until(trace, iterations)
    rows, faint = _rows(plan, trace, chosen, FAINT * until)
    figure = Figure(figsize=(12, 1.4 + 0.16 * len(rows) + 0.12 * len(chosen)), layout="constrained")
    axes = figure.add_subplot()
    scale, unit = _time_unit(trace.makespan_s)
    heights = _heights(rows)
    used = _bars(axes, plan, trace, rows, heights, iterations, scale)
    _label(axes, plan, trace, rows, heights)
    axes.set(xlim=(0, until * scale or 1.0), xlabel=f"time ({unit})")
    axes.set_title(
        f"{plan.name}, {trace.environment.get('path', trace.backend)}", loc="left", fontsize=11, fontweight="bold"
    )
    _legend(figure, used)
    left_out = _left_out(trace, chosen, iterations, faint)
    if left_out:
        axes.set_title(left_out, loc="right", fontsize=8, color="#555555")
    return figure


def chosen_lanes(count: int, most: int) -> list[int]:
    """All lanes, or `most` of them spread evenly from the first to the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _chosen(plan: Plan, trace: Trace, most: int) -> list[int]:
    """Evenly spread lanes; of plans with pools as many of each, and one at least."""
    pools = [lanes for lanes in rlhf_timeline.lanes(plan, trace) if lanes]
    if not pools or len(trace.lanes) <= most:
        return chosen_lanes(len(trace.lanes), most)
    each = max(most // len(pools), 1)
    return [lanes[i] for lanes in pools for i in chosen_lanes(len(lanes), each)]


def _rows(plan: Plan, trace: Trace, chosen: Sequence[int], least_s: float) -> tuple[list[tuple[int, str]], list[str]]:
    """(lane, stream) that hold a span, computing first within a lane; and the streams that nowhere take so long, left out."""
    of_task = [task.op.stream for task in plan.tasks]
    rank = {task.op.stream: CLASSES.index(class_of(task)) for task in reversed(plan.tasks)}
    streams = sorted(dict.fromkeys(of_task), key=lambda s: rank[s])
    number = np.array([streams.index(stream) for stream in of_task], dtype=np.int64)[trace.task]
    busy = np.zeros((len(trace.lanes), len(streams)))
    np.add.at(busy, (trace.lane, number), trace.end_s - trace.start_s)
    used = {(lane, streams[s]) for lane, s in np.unique(np.stack([trace.lane, number]), axis=1).T.tolist()}
    faint = [
        s for s, longest in zip(streams, busy[list(chosen)].max(axis=0, initial=0.0), strict=True) if longest < least_s
    ]
    rows = [(lane, s) for lane in chosen for s in streams if (lane, s) in used and s not in faint]
    return rows, [s for s in faint if any((lane, s) in used for lane in chosen)]


def _heights(rows: Sequence[tuple[int, str]]) -> list[float]:
    """Top of each row, with some space between lanes."""
    heights, y = [], 0.0
    for i, (lane, _) in enumerate(rows):
        y += 0.75 if i and rows[i - 1][0] != lane else 0.0
        heights.append(y)
        y += 1.0
    return heights


def _bars(
    axes: "Axes",
    plan: Plan,
    trace: Trace,
    rows: Sequence[tuple[int, str]],
    heights: Sequence[float],
    iterations: int,
    scale: float,
) -> list[tuple[str, str]]:
    """Draw every span of the rows; return (part, colour) in the order of the plan."""
    of_task = rlhf_timeline.parts(plan) if rlhf_timeline.pools_of(plan) else parts(plan)
    names = list(dict.fromkeys(of_task))
    spare = iter(SPARE * (len(names) // len(SPARE) + 1))
    known = {**rlhf_timeline.COLOURS, **COLOURS}
    colours = {name: known.get(name) or next(spare) for name in names}
    part = np.array([names.index(name) for name in of_task], dtype=np.int64)[trace.task]
    streams = list(dict.fromkeys(task.op.stream for task in plan.tasks))
    stream = np.array([streams.index(task.op.stream) for task in plan.tasks], dtype=np.int64)[trace.task]
    early, shown_s, shown = trace.iteration < iterations, _shown_until(trace, iterations), set[str]()
    for (lane, name), y in zip(rows, heights, strict=True):
        here = early & (trace.lane == lane) & (stream == streams.index(name))
        for p in np.unique(part[here]).tolist():
            at = here & (part == p)
            spans = np.stack([trace.start_s[at], trace.end_s[at] - trace.start_s[at]], axis=1) * scale
            spans = _joined(spans, PIXEL * shown_s * scale)
            outlined = len(spans) > 0 and float(np.median(spans[:, 1])) > THIN * shown_s * scale
            edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.4 if outlined else 0.0}
            at_y = (y + 0.06, 0.88)  # not snapped to pixels: many thin spans are as dark as they are dense
            axes.broken_barh([tuple(s) for s in spans.tolist()], at_y, facecolor=colours[names[p]], snap=False, **edge)
            shown.add(names[p])
    return [(name, colours[name]) for name in names if name in shown]


def _joined(spans: NDArray[np.float64], pixel: float) -> NDArray[np.float64]:
    """(n, 2) starts and widths in order: those with less than a tenth of `pixel` between them as one, none below half of it."""
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    ends = np.maximum.accumulate(spans.sum(axis=1))
    begin = np.flatnonzero(np.concatenate([[True], spans[1:, 0] > ends[:-1] + pixel / 10]))
    end = ends[np.append(begin[1:], len(spans)) - 1]
    return np.stack([spans[begin, 0], np.maximum(end - spans[begin, 0], pixel / 2)], axis=1)


def _label(axes: "Axes", plan: Plan, trace: Trace, rows: Sequence[tuple[int, str]], heights: Sequence[float]) -> None:
    """Stream names at their rows, lane names in front of the first row of each, models of the lane above it."""
    labels, models = [], rlhf_timeline.models(plan, trace)
    for i, ((lane, stream), y) in enumerate(zip(rows, heights, strict=True)):
        first = i == 0 or rows[i - 1][0] != lane
        labels.append(f"{trace.lanes[lane].label}   {stream}" if first else stream)
        if first and models[lane]:
            axes.text(0, y - 0.06, models[lane], fontsize=7, color="#555555", va="bottom")
    axes.set_yticks([y + 0.5 for y in heights], labels, fontsize=8)
    axes.set_ylim((heights[-1] if heights else 0.0) + 1.3, -0.8 if any(models) else -0.3)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(figure: "Figure", used: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, label=name) for name, colour in used]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 8) or 1, frameon=False, fontsize=8
    )


def _shown_until(trace: Trace, iterations: int) -> float:
    return float(trace.end_s[trace.iteration < iterations].max(initial=0.0))


def _left_out(trace: Trace, chosen: Sequence[int], iterations: int, faint: Sequence[str]) -> str:
    total = int(trace.iteration.max(initial=-1)) + 1
    found = []
    if len(chosen) < len(trace.lanes):
        found.append(f"{len(chosen)} of {len(trace.lanes):,} kinds of ranks")
    if total > iterations:
        found.append(
            f"the first {iterations} of {total} iterations" if iterations > 1 else f"the first of {total} iterations"
        )
    if faint:
        kinds = ", ".join(dict.fromkeys(re.sub(r"\d+", "*", stream) for stream in faint))
        found.append(f"without {kinds} (below {FAINT:.0%})")
    return ", ".join(found)


def _time_unit(makespan_s: float) -> tuple[float, str]:
    """Factor and name that make the end of the axis a number between 1 and 1000."""
    for factor, name in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if makespan_s * factor >= 1:
            return factor, name
    return 1e9, "ns"
