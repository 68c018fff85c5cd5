"""What a checkpoint holds, as tables and as a picture of who wrote what."""

from collections.abc import Mapping, Sequence
from string import ascii_letters
from typing import Any

from rich.console import Group as Together
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

MOST_ROWS = 40
BAR = 30


def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000 or unit == "TB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.4g} {unit}"
        nbytes /= 1000
    raise AssertionError


def counted(n: int, noun: str) -> str:
    """As in "1 file", "2 files"."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def summary_view(found: Mapping[str, Any]) -> RenderableType:
    """Facts, tensors (the largest) and a bar for each rank."""
    facts = Table.grid(padding=(0, 2))
    spread = ", ".join(f"{axis} {ranks}" for axis, ranks in found["parallelism"].items())
    facts.add_row("name", found["name"])
    facts.add_row("step", str(found["step"]))
    facts.add_row("saved by", counted(found["n_ranks"], "rank") + (f" ({spread})" if spread else ""))
    written = f"{counted(found['shards'], 'shard')}, {counted(found['files'], 'file')}"
    facts.add_row("size", f"{size(found['nbytes'])} in {written}")
    tensors = Table(title=f"{len(found['tensors'])} tensors")
    for column in ("tensor", "dtype", "shape", "size", "shards"):
        tensors.add_column(column, justify="right" if column in ("size", "shards") else "left")
    for row in sorted(found["tensors"], key=lambda t: -t["nbytes"])[:MOST_ROWS]:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        tensors.add_row(row["name"], row["dtype"], shape, size(row["nbytes"]), str(row["shards"]))
    parts: list[RenderableType] = [facts, tensors]
    if len(found["tensors"]) > MOST_ROWS:
        parts.append(Text(f"and {len(found['tensors']) - MOST_ROWS} smaller ones"))
    parts += _listed("the same memory", {alias: f"is {name}" for alias, name in found["aliases"].items()})
    parts += _listed("values", found["values"])
    return Together(*parts, _writers(found["written_B"]))


def _listed(title: str, rows: Mapping[str, str]) -> list[RenderableType]:
    """Names and what is said of each, the first ones where there are many."""
    if not rows:
        return []
    table = Table(title=title, show_header=False)
    for name, text in list(rows.items())[:MOST_ROWS]:
        table.add_row(Text(name), Text(text))
    if len(rows) > MOST_ROWS:
        table.add_row("...", f"and {len(rows) - MOST_ROWS} more")
    return [table]


def _writers(written_B: Mapping[str, Sequence[int]]) -> Table:
    """A row for each rank (the first ones where there are many), a column for each role, a bar for the sum."""
    totals = [sum(column) for column in zip(*written_B.values(), strict=True)]
    table = Table(title="who wrote what")
    table.add_column("rank", justify="right")
    for role in written_B:
        table.add_column(role, justify="right")
    letters = _letters(list(written_B))
    table.add_column("  ".join(f"{letter} {role}" for role, letter in letters.items()))
    for rank in range(min(len(totals), MOST_ROWS)):
        bar = _bar({letters[role]: column[rank] for role, column in written_B.items()}, max(*totals, 1))
        table.add_row(str(rank), *(size(column[rank]) for column in written_B.values()), bar)
    if len(totals) > MOST_ROWS:
        table.add_row(
            "...", *("" for _ in written_B), f"{len(totals)} ranks, {size(min(totals))} to {size(max(totals))}"
        )
    return table


def _letters(roles: Sequence[str]) -> dict[str, str]:
    """A letter for each role: the first of its own that no other has yet."""
    found: dict[str, str] = {}
    for role in roles:
        free = [c for c in (*role, *ascii_letters) if c not in found.values() and not c.isspace()]
        found[role] = free[0] if free else "#"
    return found


def _bar(parts: Mapping[str, int], full: int) -> str:
    """Letters in proportion to bytes, `full` being the whole length; ends are rounded, so that the sum is right."""
    text, done = "", 0
    for letter, nbytes in parts.items():
        done += nbytes
        text += letter * (round(BAR * done / full) - len(text))
    return text


def difference_view(found: Sequence[Mapping[str, str]]) -> RenderableType:
    """A row for each difference."""
    table = Table()
    table.add_column("what")
    table.add_column("difference")
    for row in found:
        table.add_row(row["name"], row["what"])
    return table
