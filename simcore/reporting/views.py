"""Plans, comparisons, sweeps, catalogue entries and prediction errors as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simcore.compare import Comparison, Row
from simcore.engine.kinds import parts
from simcore.plan import Plan
from simcore.reporting.metrics import UNITS
from simcore.reporting.text import amount, decisions_line, spaced, table, warnings_view

SWEPT = ("iteration_s", "tokens_per_s", "mfu", "idle_share", "memory_peak_B")


def plan_view(plan: Plan) -> RenderableType:
    """What was decided, and how many tasks of which part that makes."""
    made = table("Tasks", ["count"])
    names = parts(plan)
    for name in dict.fromkeys(names):
        made.add_row(name, f"{names.count(name):,}")
    memory = table("Resident memory of each rank", ["ranks", "total", "of which"])
    for group, kinds in plan.memory_B.items():
        listed = ", ".join(f"{kind} {amount(size, 'B')}" for kind, size in kinds.items())
        memory.add_row(group, f"{len(plan.groups[group]):,}", amount(sum(kinds.values()), "B"), listed)
    heading = Text(f"{plan.name} on {plan.n_ranks:,} ranks", style="bold")
    return spaced(
        [Group(heading, Text(f"plan {plan.digest}", style="dim"), Text(decisions_line(plan.decisions))), made, memory]
    )


def comparison_view(found: Comparison) -> RenderableType:
    """Metric, simulated, real, error; then the same for each part of an iteration."""
    runs = "one real run" if found.runs == 1 else f"{found.runs} real runs (median)"
    blocks: list[RenderableType] = [
        Text(f"{found.plan}: simulated and measured ({found.path}, {runs})", style="bold"),
        Text(f"plan {found.plan_digest[:16]}", style="dim"),
        side_by_side("Numbers", found.metrics, UNITS),
        side_by_side("Parts of an iteration, average rank", found.parts_s, dict.fromkeys(found.parts_s, "s")),
    ]
    if found.spread is not None:
        blocks.append(Text(f"iteration times of the real runs lie {found.spread:.1%} apart"))
    if found.warnings:
        blocks.append(warnings_view(found.warnings))
    return spaced(blocks)


def side_by_side(title: str, rows: Mapping[str, Row], units: Mapping[str, str]) -> Table:
    """One line each, without those that neither world knows."""
    made = table(title, ["simulated", "real", "error"])
    for name, row in rows.items():
        if row["simulated"] is None and row["measured"] is None:
            continue
        error = "-" if row["error"] is None else f"{row['error']:+.1%}"
        made.add_row(name, amount(row["simulated"], units[name]), amount(row["measured"], units[name]), error)
    return made


def sweep_view(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> RenderableType:
    """The values and the main metrics; below, what went wrong with the points that have none."""
    shown = [name for name in SWEPT if any(row.get(name) is not None for row in rows)]
    made = table(swept[0], [*swept[1:], *shown])
    failed: list[RenderableType] = []
    for row in rows:
        made.add_row(*(str(row[name]) for name in swept), *(amount(row.get(n), UNITS[n]) for n in shown))
        if row.get("error"):
            point = ", ".join(f"{name} {row[name]}" for name in swept)
            failed.append(Text(f"{point}: {row['error']}", style="yellow"))
    return spaced([made, *failed])


def catalog_view(entries: Mapping[Any, Sequence[Mapping[str, Any]]]) -> RenderableType:
    """A table for each kind with its main numbers."""
    return spaced([_VIEWS[kind](rows) for kind, rows in entries.items()])


def _devices(rows: Sequence[Mapping[str, Any]]) -> Table:
    made = table("devices", ["title", "memory", "bandwidth", "float32", "bfloat16", "power", "price/h"], texts=2)
    for row in rows:
        peaks = row["flop_per_s"]
        power = "-" if row["power_W"] is None else f"{row['power_W']:.0f} W"
        price = "-" if row["price_usd_per_hour"] is None else f"{row['price_usd_per_hour']:.2f} USD"
        rates = [amount(peaks.get("float32"), "flop/s"), amount(peaks.get("bfloat16", peaks.get("float16")), "flop/s")]
        bandwidth = f"{amount(row['memory_B_per_s'], 'B')}/s"
        made.add_row(row["name"], row["title"], amount(row["memory_B"], "B"), bandwidth, *rates, power, price)
    return made


def _links(rows: Sequence[Mapping[str, Any]]) -> Table:
    made = table("links", ["title", "one direction", "latency", "efficiency"], texts=2)
    for row in rows:
        rate, latency = f"{amount(row['B_per_s'], 'B')}/s", amount(row["latency_s"], "s")
        made.add_row(row["name"], row["title"], rate, latency, amount(row["efficiency"], "share"))
    return made


def _stores(rows: Sequence[Mapping[str, Any]]) -> Table:
    made = table("stores", ["title", "read", "write", "one stream reads", "request"], texts=2)
    for row in rows:
        rates = [f"{amount(row[name], 'B')}/s" for name in ("read_B_per_s", "write_B_per_s", "stream_read_B_per_s")]
        made.add_row(row["name"], row["title"], *rates, amount(row["request_s"], "s"))
    return made


def libraries_view(found: Mapping[str, Mapping[str, Sequence[str]]]) -> Table:
    """Libraries of kernels by what they are for, and where they were measured."""
    made = table("engine.libraries", ["name", "measured on"], texts=3)
    for kernels, listed in found.items():
        for name, places in listed.items():
            made.add_row(kernels, name, ", ".join(places) or "-")
    return made


_VIEWS = {"devices": _devices, "links": _links, "stores": _stores}


def nested_view(title: str, data: Mapping[str, Any]) -> Table:
    """Nested data as paths and values."""
    made = table(title, ["value"], texts=2)
    for path, value in _flattened(data, ""):
        made.add_row(path, value)
    return made


def _flattened(data: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(data, Mapping):
        return [row for key, value in data.items() for row in _flattened(value, f"{path}.{key}" if path else str(key))]
    return [(path, f"{data:.6g}" if isinstance(data, float) else str(data))]


GROUP_ROWS = 12  # lines of one breakdown


def errors_view(found: Mapping[str, Any]) -> RenderableType:
    """How far off predictions are beside plain roofline: absolute percentage errors, the signed median, then group by group."""
    made = table(f"{found['table']}: predicted beside measured", ["windtunnel", "roofline"])
    for name in ("rows", "covered"):
        made.add_row(name, f"{found[name]:,}", "")
    for name in ("median_ape", "mean_ape", "p90_ape", "bias"):
        made.add_row(name, amount(found[name], "share"), amount(found["roofline"][name], "share"))
    made.add_row("within their error band", amount(found["within"], "share"), "")
    blocks: list[RenderableType] = [made]
    if found.get("memory"):
        memory = table("Memory", ["value"])
        for name in ("covered", "median_ape", "p90_ape", "bias"):
            value = found["memory"][name]
            memory.add_row(name, f"{value:,}" if name == "covered" else amount(value, "share"))
        blocks.append(memory)
    blocks += [_group_view(column, rows) for column, rows in found["groups"].items()]
    if found["not_covered"]:
        missing = "; ".join(f"{value}: rows {numbers}" for value, numbers in found["not_covered"].items())
        blocks.append(warnings_view([f"not covered: {shortened(missing)}"]))
    return spaced(blocks)


def _group_view(column: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    made = table(f"by {column}", ["rows", "covered", "median", "p90", "bias", "roofline's median"])
    for row in rows[:GROUP_ROWS]:
        shares = (row["median_ape"], row["p90_ape"], row["bias"], row["roofline_median_ape"])
        numbers = [f"{row['rows']:,}", f"{row['covered']:,}", *(amount(share, "share") for share in shares)]
        made.add_row(shortened(row["value"], 60), *numbers)
    if len(rows) > GROUP_ROWS:
        made.add_row(f"{len(rows) - GROUP_ROWS} more", *[""] * 6)
    return made


def shortened(text: str, longest: int = 400) -> str:
    """`text`, or its beginning."""
    return text if len(text) <= longest else text[: longest - 3] + "..."
