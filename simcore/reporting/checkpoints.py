"""What a checkpoint holds, as tables and as a picture of who wrote what."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group as Together
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

MOST_ROWS = 40
BAR = 30


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000 or unit == "TB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.4g} {unit}"
        nbytes /= 1000
    raise AssertionError


def summary_view(found: Mapping[str, Any]) -> RenderableType:
    """Facts, tensors (the largest) and a bar for each rank."""
    facts = Table.grid(padding=(0, 2))
    for label in ("name", "step", "n_ranks", "parallelism", "shards", "files"):
        facts.add_row(label, str(found[label]))
    facts.add_row("size", _size(found["nbytes"]))
    tensors = Table(title=f"{len(found['tensors'])} tensors")
    for column in ("tensor", "dtype", "shape", "size", "shards"):
        tensors.add_column(column, justify="right" if column in ("size", "shards") else "left")
    for row in sorted(found["tensors"], key=lambda t: -t["nbytes"])[:MOST_ROWS]:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        tensors.add_row(row["name"], row["dtype"], shape, _size(row["nbytes"]), str(row["shards"]))
    parts: list[RenderableType] = [facts, tensors]
    if len(found["tensors"]) > MOST_ROWS:
        parts.append(Text(f"and {len(found['tensors']) - MOST_ROWS} smaller ones"))
    return Together(*parts, _writers(found["written_B"]))


def _writers(written_B: Mapping[str, Sequence[int]]) -> Table:
    """A row for each rank (the first ones where there are many), a column for each role, a bar for the sum."""
    totals = [sum(column) for column in zip(*written_B.values(), strict=True)]
    table = Table(title="who wrote what")
    table.add_column("rank", justify="right")
    for role in written_B:
        table.add_column(role, justify="right")
    table.add_column("")
    for rank, total in enumerate(totals[:MOST_ROWS]):
        bar = "#" * round(BAR * total / max(*totals, 1))
        table.add_row(str(rank), *(_size(column[rank]) for column in written_B.values()), bar)
    if len(totals) > MOST_ROWS:
        table.add_row(
            "...", *("" for _ in written_B), f"{len(totals)} ranks, {_size(min(totals))} to {_size(max(totals))}"
        )
    return table


def difference_view(found: Sequence[Mapping[str, str]]) -> RenderableType:
    """A row for each difference."""
    table = Table()
    table.add_column("what")
    table.add_column("difference")
    for row in found:
        table.add_row(row["name"], row["what"])
    return table
