"""QSync's allocator: precisions that disturb training least among those that are as fast as the fastest and fit into memory.

From the fastest setting of each class that fits (`frontier`), recovery raises operators by falling gain in the indicator, one step
of the operator's ladder at a time, wherever memory and the replayed time of an iteration allow. It also starts from settings that
disturb least if kernel seconds and bytes have a price. The best of what comes out are refined (`exchanges`), and the best is taken.
Without refinement and prices, recovery alone is often far from the best: what rises first uses up the time that two others need.

Everything is deterministic, and bounded by numbers of trials instead of time. The optimum is not guaranteed: `exact` finds it, or
says how far it can be. The released code starts from uniform float16, has neither prices nor refinement, and computes gains with a
wrong sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from simcore.qsync.exchanges import SMALL, refine
from simcore.qsync.replay import Replayer
from simcore.qsync.search_state import ClassToPlan, State
from simcore.qsync.settings import Setting, kept_B

BISECTIONS = 18

BEST = 2
"""Starts that are refined of a large graph; of a small one (`exchanges.SMALL`) all are."""

RATIOS = (0.03, 1.0, 30.0)
"""Prices of all bytes to that of all seconds that are tried where memory binds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The settings by class, and how they were found.

    `initial_s`: iteration of the fastest settings (T0), `limit_s`: what was allowed. Steps of recovery that were taken and
    rejected, and changes of refinement, are those from the `start` that led to the result; `replays` are those of all starts.
    """

    settings: tuple[Setting, ...]
    iteration_s: float
    variance: float
    initial_s: float
    initial_variance: float
    limit_s: float
    start: str
    recovered: int
    rejected: int
    refined: int
    replays: int
    complete: bool


def allocate(classes: Sequence[ClassToPlan], replayer: Replayer, *, tolerance: float = 0.0) -> Allocation:
    """Precisions for all classes, which the replayer has in the same order; each needs a setting that fits (`fastest`).

    An iteration takes at most (1 + tolerance) times that of the fastest settings.
    """
    fastest = [c.fastest for c in classes]
    settings = [s for s in fastest if s is not None]
    assert len(settings) == len(classes), "a class that nothing fits"
    initial_s = replayer.replay(settings).iteration_s
    first = State(list(classes), replayer, initial_s * (1.0 + tolerance), settings)
    searches = [Search(name="fastest", state=first.copy()), *_with_prices(first)]
    for search in searches:
        search.recovered, search.rejected = recover(search.state)
    searches.sort(key=lambda s: s.state.variance)
    small = all(len(c.free) <= SMALL for c in classes)
    for search in searches if small else searches[:BEST]:
        search.refined = sum(refine(search.state, k) for k in range(len(classes)))
    best = min(searches, key=lambda s: s.state.variance)
    return Allocation(
        settings=tuple(best.state.settings),
        iteration_s=best.state.replayed.iteration_s,
        variance=best.state.variance,
        initial_s=initial_s,
        initial_variance=sum(c.variance(s) for c, s in zip(classes, settings, strict=True)),
        limit_s=first.limit_s,
        start=best.name,
        recovered=best.recovered,
        rejected=best.rejected,
        refined=best.refined,
        replays=first.replays + sum(s.state.replays for s in searches),
        complete=all(c.frontiers.complete for c in classes),
    )


@dataclass(eq=False, kw_only=True)
class Search:
    """One start and what became of it."""

    name: str
    state: State
    recovered: int = 0
    rejected: int = 0
    refined: int = 0


def recover(state: State) -> tuple[int, int]:
    """Raise the operator that gains most, as far as it goes; one that cannot rise is left as it is. Raised and rejected steps."""
    heap = [entry for k, c in enumerate(state.classes) for i in c.free.tolist() if (entry := _gain(state, k, i))]
    heapify(heap)
    recovered = rejected = 0
    while heap:
        _, k, i, precision = heappop(heap)
        if not state.attempt(k, [(i, precision)]):
            rejected += 1
            continue
        recovered += 1
        if entry := _gain(state, k, i):
            heappush(heap, entry)
    return recovered, rejected


def _gain(state: State, k: int, i: int) -> tuple[float, int, int, int] | None:
    """What the next step of an operator's ladder gains, negative: the heap gives the least first."""
    of, now = state.classes[k], int(state.settings[k].computes[i])
    steps = of.steps[i]
    at = steps.index(now) + 1
    return None if at == len(steps) else (float(of.cost[i, steps[at]] - of.cost[i, now]), k, i, steps[at])


def _with_prices(first: State) -> list[Search]:
    """Starts from settings that disturb least where kernel seconds and bytes have a price, the lowest that keeps the limits.

    Seconds have their price everywhere, or until the bucket is ready that has the least time to spare; bytes only where the limit
    of memory binds. A class that no such setting disturbs less stays as it is.
    """
    found = []
    for until in ("all seconds", "seconds before the tightest bucket"):
        for ratio in RATIOS if any(_memory_binds(c) for c in first.classes) else RATIOS[1:2]:
            state = first.copy()
            for k, of in enumerate(first.classes):
                step = 0 if until == "all seconds" else state.tightest_step(k)
                if len(of.free) and (step or until == "all seconds"):
                    _bisect(state, k, ratio, step)
            if state.settings != first.settings:
                found.append(Search(name=f"prices of {until}, bytes {ratio:g}", state=state))
    return found


def _memory_binds(of: ClassToPlan) -> bool:
    return not of.fits(of.least_disturbing)


def _bisect(state: State, k: int, ratio: float, step: int) -> None:
    """Bisection of the price's logarithm between one that is next to nothing and one that outweighs every disturbance."""
    of, now = state.classes[k], state.settings[k]
    kept = kept_B(of.local, now)
    per_s = 1.0 / max(float(now.device_s.sum()), 1e-12)
    per_B = ratio / max(kept, 1.0) if _memory_binds(of) else 0.0
    largest = float(of.cost.max()) or 1.0
    low, high = np.log(largest * 1e-12), np.log(largest * 1e9)
    for _ in range(BISECTIONS):
        price = float(np.exp((low + high) / 2))
        prices = {"price_s": price * per_s, "price_B": price * per_B}
        chosen = of.setting_of(of.frontiers.cheapest(**prices, costs=of.cost, backward_from=step))
        found = state.within(k, chosen)
        if found and of.variance(chosen) <= of.variance(state.settings[k]):
            state.take(k, chosen, found)
        low, high = (low, np.log(price)) if found else (np.log(price), high)
