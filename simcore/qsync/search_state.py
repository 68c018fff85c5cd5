"""What the allocator searches: classes with their choices and limits, and the settings that it is at."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from costmodels.precision import PRECISIONS
from simcore.qsync.frontier import Frontiers
from simcore.qsync.indicator import Table, ladder
from simcore.qsync.local import INDEX, Floats, Ints, LocalGraph
from simcore.qsync.replay import Replayed, Replayer
from simcore.qsync.settings import Setting, allotted_B, changed, setting

ROUNDING = 1e-9
"""Of a limit of time, relative: sums in another order are not another time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassToPlan:
    """A class: what `local` allows is chosen from; `omega` by operator and precision counts `share` times."""

    name: str
    local: LocalGraph
    omega: Table
    share: float
    limit_B: float

    @cached_property
    def frontiers(self) -> Frontiers:
        """All moves of the class."""
        return Frontiers(self.local)

    @cached_property
    def cost(self) -> Floats:
        """(n, P) share times Omega, 0 for what is not chosen."""
        found = np.zeros(self.local.allowed.shape)
        for i in self.local.adjustable.tolist():
            for precision, omega in self.omega[self.local.graph.operators[i].name].items():
                found[i, INDEX[precision]] = self.share * omega
        return found

    @cached_property
    def free(self) -> Ints:
        """Operators with more than one precision to choose from."""
        return np.flatnonzero(self.local.allowed.sum(axis=1) > 1)

    @cached_property
    def steps(self) -> dict[int, tuple[int, ...]]:
        """By operator: its precisions from the most to the least disturbing."""
        return {i: tuple(p for p in self._ladder(i) if self.local.allowed[i, p]) for i in self.free.tolist()}

    def _ladder(self, i: int) -> tuple[int, ...]:
        return tuple(INDEX[p] for p in ladder(self.omega[self.local.graph.operators[i].name]))

    def variance(self, chosen: Setting) -> float:
        """The class's part of the objective."""
        rows = self.local.adjustable
        return float(self.cost[rows, chosen.computes[rows]].sum())

    def setting_of(self, computes: Ints) -> Setting:
        """The setting with these precisions of adjustable operators."""
        names = self.local.graph.operators
        return setting(self.local, {names[i].name: PRECISIONS[computes[i]] for i in self.local.adjustable.tolist()})

    def fits(self, chosen: Setting) -> bool:
        return allotted_B(self.local, chosen) <= self.limit_B

    @cached_property
    def least_B(self) -> float:
        """Memory of the setting that needs least."""
        return allotted_B(self.local, self.setting_of(self.frontiers.cheapest(price_s=0.0, price_B=1.0)))

    @cached_property
    def least_disturbing(self) -> Setting:
        """The setting with the least Omega, whatever it needs."""
        return self.setting_of(self.frontiers.cheapest(price_s=0.0, price_B=0.0, costs=self.cost))

    @cached_property
    def fastest(self) -> Setting | None:
        """The setting with the least kernel seconds that fits, as `Frontiers.fastest` guarantees it; None where nothing fits."""
        quickest = self.setting_of(self.frontiers.cheapest(price_s=1.0, price_B=0.0))
        if self.fits(quickest):
            return quickest
        found = self.frontiers.fastest(self.limit_B - sum(self.local.resident_B.values()) - self.local.allowance_B)
        return None if found is None else self.setting_of(found)


@dataclass(eq=False)
class State:
    """Settings that keep all limits. What is tried and rejected changes nothing but the count of replays."""

    classes: list[ClassToPlan]
    replayer: Replayer
    limit_s: float
    settings: list[Setting]
    replays: int = 0
    replayed: Replayed = field(init=False)

    def __post_init__(self) -> None:
        self.settings = list(self.settings)
        self.replayed = self.replayer.replay(self.settings)

    def copy(self) -> "State":
        """The same settings, to be changed apart."""
        return State(self.classes, self.replayer, self.limit_s, self.settings)

    @property
    def variance(self) -> float:
        """The objective."""
        return sum(c.variance(s) for c, s in zip(self.classes, self.settings, strict=True))

    def within(self, k: int, chosen: Setting) -> Replayed | None:
        """The iteration with this setting of a class, if it keeps the limits."""
        if not self.classes[k].fits(chosen):
            return None
        self.replays += 1
        found = self.replayer.replay([*self.settings[:k], chosen, *self.settings[k + 1 :]])
        return found if found.iteration_s <= self.limit_s * (1.0 + ROUNDING) else None

    def take(self, k: int, chosen: Setting, replayed: Replayed) -> None:
        """Go to a setting of a class that was found to keep the limits."""
        self.settings[k], self.replayed = chosen, replayed

    def attempt(self, k: int, moves: Sequence[tuple[int, int]]) -> bool:
        """Put operators of a class into other precisions, all or none."""
        chosen = self.settings[k]
        for operator, precision in moves:
            chosen = changed(self.classes[k].local, chosen, operator, precision)
        found = self.within(k, chosen)
        if found:
            self.take(k, chosen, found)
        return found is not None

    def to_spare_s(self, k: int) -> Floats:
        """(buckets + 1) how much later a class could have each bucket ready, and end its backward pass, by the limit.

        A bucket has to start by the limit less the longest optimizer and the buckets from it on.
        """
        moving = self.replayer.bucket_s
        end = self.limit_s - max(c.local.optimizer_s for c in self.classes)
        start_by = end - np.cumsum(moving[::-1])[::-1]
        ready = np.array([of_class[k] for of_class in self.replayed.ready_s])
        own = self.limit_s - self.classes[k].local.optimizer_s - self.replayed.computed_s[k]
        return np.append(start_by - ready, own)

    def tightest_step(self, k: int) -> int:
        """The operator to whose backward step the class has the least time to spare."""
        tightest = int(self.to_spare_s(k).argmin())
        steps = self.classes[k].local.bucket_step
        return int(steps[tightest]) if tightest < len(steps) and len(self.replayer.bucket_s) else 0
