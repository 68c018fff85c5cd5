"""A picture of a sweep: iteration time over the first swept value, a line for each combination of the others."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from costmodels.files import write_atomically
from simcore.errors import InputError, Problem

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def draw(frame: "pd.DataFrame", swept: Sequence[str], path: Path, metric: str = "iteration_s") -> None:
    """Write the picture as PNG, whole or not at all."""
    buffer = BytesIO()
    picture(frame, swept, metric).savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def picture(frame: "pd.DataFrame", swept: Sequence[str], metric: str = "iteration_s") -> "Figure":
    """Points that failed are left out and counted. Raises `InputError` where all of them failed."""
    from matplotlib.figure import Figure

    if metric not in frame or not frame[metric].notna().any():
        raise InputError(
            "nothing to draw", [Problem("--plot", "a sweep in which every point failed", "at least one that ran")]
        )
    good = frame[frame[metric].notna()]
    first, others = swept[0], list(swept[1:])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    groups = good.groupby(others, sort=False) if others else [((), good)]
    for key, group in groups:
        label = ", ".join(f"{name.rsplit('.', 1)[-1]} {value}" for name, value in zip(others, key, strict=True))
        axes.plot(group[first].astype(str), group[metric], marker="o", label=label)
    axes.set(xlabel=first, ylabel=metric, ylim=(0, None))
    axes.grid(color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if others:
        axes.legend(frameon=False, fontsize=8)
    if len(good) < len(frame):
        axes.set_title(
            f"{len(frame) - len(good)} of {len(frame)} points failed and are left out", loc="left", fontsize=9
        )
    return figure
