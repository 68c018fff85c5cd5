"""All tables at once: how far predictions are off, on what was fitted and on what was not, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from costmodels import fitted
from costmodels.errors import DataError
from simcore.progress import Progress
from simcore.tables import names
from simcore.validate import validate

Found = Mapping[str, Any]

GOALS: Mapping[str, str] = {
    "gemm": "8 % (p90 25 %); 20 % unseen",
    "attention": "10 % (p90 30 %); 20 % unseen",
    "elementwise": "6 %; 15 % unseen",
    "collectives": "12 %; 25 % unseen",
    "model_operators": "5 %; 12 % unseen",
    "training": "6 % (p90 15 %) dense, trusted, A100 and H100; 10 % unseen; memory 8 %",
}
"""Median errors that are aimed at, on seen devices and on devices that no fit has seen."""

LINES = 10  # of one breakdown

INTRODUCTION = """\
Written by `windtunnel validate --all` from the measurements in `costmodels/data`. Errors are of seconds, as a share of what was
measured: the median and the 90th percentile of their sizes, and the median with its sign (bias). *Inside the band*: rows that are
as close as their own error band says, which is meant to be four of five. *Unseen*: rows of a device (or source) that a fit of this
table to all others predicts (`python -m simcore.fit --holdout device source`). Roofline is FLOPs over peak or bytes over
bandwidth, whichever is more."""


def every_table(progress: Progress | None = None) -> dict[str, Any]:
    """`validate` of each table on the shipped measurements."""
    listed = names()
    found = {}
    for i, name in enumerate(listed):
        if progress:
            progress(i / len(listed), name)
        found[name] = validate(name)
    return found


def markdown(found: Mapping[str, Found]) -> str:
    """The scoreboard: one line for each table, then each table by device, dtype, op and source."""
    blocks = [
        "# How far predictions are off",
        INTRODUCTION,
        _summary(found),
        *(_section(name, each) for name, each in found.items()),
    ]
    return "\n\n".join(blocks) + "\n"


def _summary(found: Mapping[str, Found]) -> str:
    held = _optional("holdout")
    rows = [
        [
            name,
            f"{each['rows']:,}",
            _share(each["covered"] / max(each["rows"], 1)),
            _share(each["median_ape"]),
            _share(each["p90_ape"]),
            _share(each["bias"]),
            _share(each["within"]),
            _share(each["roofline"]["median_ape"]),
            *(_held(held.get(name, {}).get(kind)) for kind in ("device", "source")),
            GOALS.get(name, ""),
        ]
        for name, each in found.items()
    ]
    head = ["table", "rows", "covered", "median", "p90", "bias", "inside the band", "roofline's median"]
    return table([*head, "unseen device", "unseen source", "aimed at (median)"], rows)


def _held(errors: Found | None) -> str:
    return f"{_share(errors['median_ape'])} (p90 {_share(errors['p90_ape'])})" if errors else "-"


def _section(name: str, found: Found) -> str:
    blocks = [f"## {name}"]
    memory = found.get("memory")
    if memory:
        blocks.append(
            f"Memory of {memory['covered']} rows: median {_share(memory['median_ape'])}, p90 {_share(memory['p90_ape'])}."
        )
    floors = _floors(name)
    if floors:
        blocks.append(
            "What no model can remove, the same work measured by different libraries or publishers: " + floors
        )
    for column, rows in found["groups"].items():
        lines = [[_plain(r["value"]), f"{r['rows']:,}", *(_share(r[k]) for k in SHOWN)] for r in rows[:LINES]]
        blocks.append(table([column, "rows", "median", "p90", "bias", "roofline's median"], lines))
    return "\n\n".join(blocks)


SHOWN = ("median_ape", "p90_ape", "bias", "roofline_median_ape")


def _floors(name: str) -> str:
    """The fit's own measure of noise, where it has one."""
    return _listed(_optional(name).get("floors", {}), "")


def _listed(node: Any, path: str) -> str:
    if isinstance(node, Mapping):
        parts = (_listed(value, f"{path} {key}".strip()) for key, value in node.items())
        return "; ".join(part for part in parts if part)
    return f"{path} {node:.3g}" if isinstance(node, float) else f"{path} {node}" if isinstance(node, int) else ""


def _optional(name: str) -> Mapping[str, Any]:
    """A fitted table, empty where it was not made."""
    try:
        return fitted.load(name)
    except (DataError, FileNotFoundError):
        return {}


def _plain(text: str) -> str:
    return text.replace("|", "/")[:70]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first holds numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
