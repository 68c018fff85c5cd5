"""A description of an RLHF plan as tables for people."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from simcore.hybridflow.describe import Description, Fill
from simcore.reporting.text import amount, spaced, table


def description_view(found: Description) -> RenderableType:
    """Which model where, when each call runs, what fills the GPUs, why pools are idle."""
    rate = f"{found.tokens_per_s:,.0f} tokens/s"
    heading = Text(f"{found.plan}: {amount(found.iteration_s, 's')} an iteration, {rate}", style="bold")
    blocks: list[RenderableType] = [heading, _models(found), _calls(found), _memory(found.fills)]
    if any(found.idle_s.values()):
        blocks.append(_idle(found))
    return spaced(blocks)


def _models(found: Description) -> Table:
    made = table("Which model is where", ["pool", "GPUs", "split", "states of a rank"], texts=4)
    for stay in found.stays:
        ranks = f"{stay.first_rank} to {stay.last_rank} ({stay.device})"
        made.add_row(stay.role, stay.pool, ranks, stay.parallelism, amount(sum(stay.memory_B.values()), "B"))
    return made


def _calls(found: Description) -> Table:
    made = table("What runs when", ["call", "model", "pool", "start", "end", "takes"], texts=4)
    for turn in found.turns:
        times = [amount(t, "s") for t in (turn.start_s, turn.end_s, turn.end_s - turn.start_s)]
        made.add_row(turn.stage, turn.call, turn.role, turn.pool, *times)
    return made


def _memory(fills: tuple[Fill, ...]) -> Table:
    kinds = list(dict.fromkeys(kind for fill in fills for kind in fill.memory_B))
    made = table("Memory of a GPU", ["has", "margin", *kinds])
    for fill in fills:
        sizes = [amount(fill.memory_B.get(kind), "B") for kind in kinds]
        label = f"{fill.pool} {fill.when}"
        made.add_row(label, amount(fill.capacity_B, "B"), amount(fill.margin_B, "B"), *sizes)
    return made


def _idle(found: Description) -> Table:
    made = table("Why pools are idle", ["cause", "time", "of an iteration"], texts=2)
    for pool, causes in found.idle_s.items():
        for cause, seconds in causes.items():
            made.add_row(pool, cause, amount(seconds, "s"), amount(seconds / found.iteration_s, "share"))
    return made
