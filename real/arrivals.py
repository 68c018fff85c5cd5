"""Collectives begin when the last member has arrived, in traces of runs as in the simulator: until then a rank is idle.

Who is early waits inside the call of the library, so that what a rank sees of a collective is as long as its lead.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simcore.plan import Collective, Plan

Piece = Sequence[Any]
"""Task, iteration, start, end, and what else is known of it."""


def begun_together(plan: Plan, results: Sequence[Mapping[str, Any]]) -> list[list[Piece]]:
    """The pieces of each rank, those of collectives from the arrival of their last member on.

    The k-th piece of a task in an iteration is that of the same collective on every member. Where a member has fewer than
    another, its collectives were too short to be written down, and all stay as they are. Ranks must share a clock.
    """
    pieces: list[list[Piece]] = [list(r["pieces"]) for r in results]
    places = [_places(own) for own in pieces]
    for task in plan.tasks:
        if not isinstance(task.op, Collective):
            continue
        for members in plan.groups[task.op.group].instances(task.op.along).tolist():
            for iteration in {i for rank in members for i in places[rank].get(task.id, {})}:
                own = [[(rank, at) for at in places[rank].get(task.id, {}).get(iteration, [])] for rank in members]
                if len({len(found) for found in own}) == 1:
                    for same in zip(*own, strict=True):
                        _begin_together(pieces, same)
    return pieces


def _places(pieces: Iterable[Piece]) -> dict[str, dict[int, list[int]]]:
    """Positions by task and iteration, in the order of time."""
    found: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for at, piece in sorted(enumerate(pieces), key=lambda one: float(one[1][2])):
        found[piece[0]][piece[1]].append(at)
    return found


def _begin_together(pieces: list[list[Piece]], same: Sequence[tuple[int, int]]) -> None:
    last = max(pieces[rank][at][2] for rank, at in same)
    for rank, at in same:
        task, iteration, start, end, *more = pieces[rank][at]
        pieces[rank][at] = (task, iteration, max(start, min(last, end)), end, *more)
