"""A report as tables for people; the style that all tables share."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from simcore.reporting.metrics import UNITS
from simcore.reporting.report import Memory, Report

WIDTH = 120
SHOWN = 8  # rows of a list
NEGLIGIBLE = 1e-6  # share of an iteration that gets no line

_STEPS = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "B": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "flop/s": ((1e15, "Pflop/s"), (1e12, "Tflop/s"), (1e9, "Gflop/s"), (1.0, "flop/s")),
    "J": ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J")),
}


def amount(value: float | None, unit: str) -> str:
    """A number as people read it: four digits, a prefix that suits, shares in per cent."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{value:.1%}"
    steps = _STEPS.get(unit)
    if steps is None:
        number = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
        return f"{number} {unit}".rstrip() if unit != "/s" else f"{number}/s"
    size, name = next(((s, n) for s, n in steps if abs(value) >= s), steps[-1])
    return f"{value / size:.4g} {name}"


def as_text(content: RenderableType, width: int = WIDTH) -> str:
    """What the terminal shows, without colours, the same everywhere: for files."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(content)
    written: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in written.splitlines()) + "\n"


def report_view(report: Report) -> RenderableType:
    """Everything a report says, top down: numbers, where the time goes, memory, what to beware of."""
    blocks: list[RenderableType] = [_heading(report), _metrics(report)]
    one = report.metrics["iteration_s"] or report.metrics["makespan_s"] or 0.0
    if report.critical_path:
        blocks.append(_critical(report))
    blocks.append(_seconds("Where an average rank spends an iteration", report.parts_s, one))
    waits = {f"waiting: {cause}": s for cause, s in report.idle_s.items() if s > NEGLIGIBLE * one}
    if waits:
        blocks.append(_seconds("Why it is idle", waits, one))
    if report.memory:
        blocks.append(_memory(report.memory))
    if report.links:
        blocks.append(_links(report))
    if report.warnings:
        blocks.append(warnings_view(report.warnings))
    return spaced(blocks)


def warnings_view(warnings: Sequence[str]) -> Group:
    """One line each."""
    return Group(*(Text(f"warning: {warning}", style="yellow") for warning in warnings))


def _heading(report: Report) -> RenderableType:
    made = f"{report.plan} on {report.ranks:,} ranks, {report.path}"
    lines = [Text(made, style="bold"), Text(f"plan {report.plan_digest[:16]}  backend {report.backend}", style="dim")]
    decisions = decisions_line(report.decisions)
    if decisions:
        lines.append(Text(decisions))
    if report.libraries:
        named = ", ".join(f"{kernels} {library}" for kernels, library in report.libraries.items())
        lines.append(Text(f"kernel libraries: {named}", style="dim"))
    return Group(*lines)


def decisions_line(decisions: Mapping[str, object], longest: int = 160) -> str:
    """The decisions that fit on a line or two; long lists (a bucket of every parameter) stay in the plan."""
    brief = {key: _brief(value) for key, value in decisions.items()}
    return ", ".join(f"{key} {text}" for key, text in brief.items() if len(text) <= longest)


def _brief(value: object) -> str:
    """{"tp": 8, "pp": 16} as `tp 8 pp 16`."""
    if isinstance(value, Mapping):
        return "(" + " ".join(f"{k} {_brief(v)}" for k, v in value.items()) + ")"
    return value if isinstance(value, str) else json.dumps(value)


def table(title: str, columns: Sequence[str], texts: int = 1) -> Table:
    """The one style of table: the title heads the first column; the first `texts` columns are text, all others numbers."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    made.add_column(Text(title, style="bold"), overflow="fold")
    for i, column in enumerate(columns, start=1):
        made.add_column(column, justify="left" if i < texts else "right", overflow="fold", no_wrap=i >= texts)
    return made


def spaced(blocks: Sequence[RenderableType]) -> Group:
    """Blocks with a blank line between them."""
    return Group(*(line for block in blocks for line in (block, Text(""))))


def _metrics(report: Report) -> Table:
    made = table("Numbers", ["value"])
    for name, unit in UNITS.items():
        if report.metrics.get(name) is not None:
            made.add_row(name, amount(report.metrics[name], unit) + _band(report, name, unit))
    return made


def _band(report: Report, name: str, unit: str) -> str:
    """` (5.9 - 6.7 s)`: between which four of five such predictions would lie."""
    value, error = report.metrics[name], report.error.get(name)
    if value is None or error is None:
        return ""
    return f" ({amount(value / (1 + error), unit)} - {amount(value / max(1 - error, 0.1), unit)})"


def _critical(report: Report) -> Table:
    made = table("Critical path of the last iteration", ["tasks", "time", "share"])
    for c in report.critical_path[:SHOWN]:
        made.add_row(c.kind, str(c.count), amount(c.seconds, "s"), amount(c.share, "share"))
    rest = report.critical_path[SHOWN:]
    if rest:
        seconds, share = sum(c.seconds for c in rest), sum(c.share for c in rest)
        made.add_row(f"{len(rest)} more", str(sum(c.count for c in rest)), amount(seconds, "s"), amount(share, "share"))
    return made


def _seconds(title: str, found: Mapping[str, float], whole: float) -> Table:
    made = table(title, ["time", "of an iteration"])
    for name, seconds in found.items():
        made.add_row(name, amount(seconds, "s"), amount(seconds / whole if whole else 0.0, "share"))
    return made


def _memory(rows: Sequence[Memory]) -> Table:
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.kinds_B))
    devices = list(dict.fromkeys(row.device for row in rows))
    made = table(f"Peak memory of {devices[0]}" if len(devices) == 1 else "Peak memory", ["used", "of", *kinds])
    for row in rows[:SHOWN]:
        sizes = [amount(row.kinds_B.get(kind), "B") for kind in kinds]
        label = row.lane if len(devices) == 1 else f"{row.lane} ({row.device})"
        made.add_row(label, amount(row.used_B, "B"), amount(row.capacity_B, "B"), *sizes)
    if len(rows) > SHOWN:
        made.add_row(f"{len(rows) - SHOWN} more kinds of ranks", *[""] * (len(kinds) + 2))
    return made


def _links(report: Report) -> Table:
    """The busiest; those that carry the same bytes for the same time are put together."""
    made = table("Busiest links", ["alike", "bytes", "busy"])
    alike: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for link in report.links:
        alike.setdefault((link["nbytes"], link["busy"]), []).append(link)
    for (nbytes, busy), links in list(alike.items())[:SHOWN]:
        count = sum(link["alike"] for link in links)
        made.add_row(str(links[0]["link"]), f"{count:,}", amount(nbytes, "B"), amount(busy, "share"))
    return made
