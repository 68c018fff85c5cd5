"""Strategies of several roles of a pool together: their time, what stays, and the most that one of them needs besides."""

from collections.abc import Sequence
from dataclasses import dataclass

from simcore.hybridflow.model_costs import Strategy

MOST_COMBINATIONS = 64
"""Of roles that do not generate: kept where there are more, evenly from the fastest to the smallest."""


@dataclass(frozen=True, slots=True)
class Combined:
    """Strategies of several roles: their time, what stays, the most that is needed besides."""

    seconds: float
    states_B: float
    working_B: float
    chosen: tuple[Strategy, ...]


def undominated(found: Sequence[Combined]) -> list[Combined]:
    """Fastest first; each has less of one kind of memory than all that are faster."""
    kept: list[Combined] = []
    for c in sorted(found, key=lambda c: (c.seconds, c.states_B, c.working_B)):
        if not any(k.states_B <= c.states_B and k.working_B <= c.working_B for k in kept):
            kept.append(c)
    return kept


def thinned(found: list[Combined]) -> list[Combined]:
    """At most `MOST_COMBINATIONS`, with the fastest and the last, which holds least."""
    if len(found) <= MOST_COMBINATIONS:
        return found
    step = (len(found) - 1) / (MOST_COMBINATIONS - 1)
    return [found[round(i * step)] for i in range(MOST_COMBINATIONS)]
