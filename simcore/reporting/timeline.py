"""A picture of a trace: lanes top down, a row for each stream, colours by part of the iteration."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.files import write_atomically
from simcore.engine.kinds import CLASSES, class_of, parts
from simcore.plan import Plan
from simcore.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LANES = 8
MOST_ITERATIONS = 2
THIN = 0.01  # spans shorter than this share of the picture get no outline, which would cover them

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

    chosen = chosen_lanes(len(trace.lanes), lanes)
    rows = _rows(plan, trace, chosen)
    figure = Figure(figsize=(12, 1.4 + 0.16 * len(rows) + 0.12 * len(chosen)), layout="constrained")
    axes = figure.add_subplot()
    scale, unit = _time_unit(trace.makespan_s)
    heights = _heights(rows)
    used = _bars(axes, plan, trace, rows, heights, iterations, scale)
    _label(axes, trace, rows, heights)
    until = _shown_until(trace, iterations) * scale
    axes.set(xlim=(0, until or 1.0), xlabel=f"time ({unit})")
    axes.set_title(
        f"{plan.name}, {trace.environment.get('path', trace.backend)}", loc="left", fontsize=11, fontweight="bold"
    )
    _legend(figure, used)
    left_out = _left_out(trace, chosen, iterations)
    if left_out:
        axes.set_title(left_out, loc="right", fontsize=8, color="#555555")
    return figure


def chosen_lanes(count: int, most: int) -> list[int]:
    """All lanes, or `most` of them spread evenly from the first to the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _rows(plan: Plan, trace: Trace, chosen: Sequence[int]) -> list[tuple[int, str]]:
    """(lane, stream) that hold a span, computing first within a lane."""
    of_task = [task.op.stream for task in plan.tasks]
    rank = {task.op.stream: CLASSES.index(class_of(task)) for task in reversed(plan.tasks)}
    streams = sorted(dict.fromkeys(of_task), key=lambda s: rank[s])
    used = {(lane, of_task[task]) for lane, task in np.unique(np.stack([trace.lane, trace.task]), axis=1).T.tolist()}
    return [(lane, stream) for lane in chosen for stream in streams if (lane, stream) in used]


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
    of_task = parts(plan)
    names = list(dict.fromkeys(of_task))
    spare = iter(SPARE * (len(names) // len(SPARE) + 1))
    colours = {name: COLOURS.get(name) or next(spare) for name in names}
    part = np.array([names.index(name) for name in of_task], dtype=np.int64)[trace.task]
    streams = list(dict.fromkeys(task.op.stream for task in plan.tasks))
    stream = np.array([streams.index(task.op.stream) for task in plan.tasks], dtype=np.int64)[trace.task]
    early, shown_s = trace.iteration < iterations, _shown_until(trace, iterations)
    for (lane, name), y in zip(rows, heights, strict=True):
        here = early & (trace.lane == lane) & (stream == streams.index(name))
        for p in np.unique(part[here]).tolist():
            at = here & (part == p)
            spans = np.stack([trace.start_s[at], trace.end_s[at] - trace.start_s[at]], axis=1) * scale
            outlined = len(spans) > 0 and float(np.median(spans[:, 1])) > THIN * shown_s * scale
            edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.4 if outlined else 0.0}
            axes.broken_barh([tuple(s) for s in spans.tolist()], (y + 0.06, 0.88), facecolor=colours[names[p]], **edge)
    shown = {names[p] for p in np.unique(part[early]).tolist()}
    return [(name, colours[name]) for name in names if name in shown]


def _label(axes: "Axes", trace: Trace, rows: Sequence[tuple[int, str]], heights: Sequence[float]) -> None:
    """Stream names at their rows, lane names in front of the first row of each."""
    labels = []
    for i, (lane, stream) in enumerate(rows):
        first = i == 0 or rows[i - 1][0] != lane
        labels.append(f"{trace.lanes[lane].label}   {stream}" if first else stream)
    axes.set_yticks([y + 0.5 for y in heights], labels, fontsize=8)
    axes.set_ylim((heights[-1] if heights else 0.0) + 1.3, -0.3)
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


def _left_out(trace: Trace, chosen: Sequence[int], iterations: int) -> str:
    total = int(trace.iteration.max(initial=-1)) + 1
    found = []
    if len(chosen) < len(trace.lanes):
        found.append(f"{len(chosen)} of {len(trace.lanes):,} kinds of ranks")
    if total > iterations:
        found.append(
            f"the first {iterations} of {total} iterations" if iterations > 1 else f"the first of {total} iterations"
        )
    return ", ".join(found)


def _time_unit(makespan_s: float) -> tuple[float, str]:
    """Factor and name that make the end of the axis a number between 1 and 1000."""
    for factor, name in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if makespan_s * factor >= 1:
            return factor, name
    return 1e9, "ns"
