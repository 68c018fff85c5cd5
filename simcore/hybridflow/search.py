"""The fastest placement: exhaustive, or by branch and bound with the same answer.

A pool may leave ranks idle where fewer are faster, so that what it takes never grows with its size. That is what the bound of a
pool whose size is still open stands on: each of its calls takes at least what it takes on everything that is left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from simcore.hybridflow.dataflow import Dataflow
from simcore.hybridflow.placements import Placement, partitions
from simcore.hybridflow.pool_choice import PoolChoice
from simcore.hybridflow.timeline import timeline
from simcore.hybridflow.zones import Zone

Mode = Literal["exhaustive", "pruned"]
Choose = Callable[[int, tuple[str, ...], int], PoolChoice | None]
"""Zone, roles and number of ranks to the best strategies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Pools in the order of `placement`; `sizes` are what the pools have, of which a choice may use less."""

    placement: Placement
    zones: tuple[int, ...]
    sizes: tuple[int, ...]
    pools: tuple[PoolChoice, ...]
    seconds: float


@dataclass(slots=True)
class Counts:
    """What a search looked at."""

    placements: int = 0
    complete: int = 0
    pruned: int = 0


@dataclass
class Search:
    """Searches placements of a dataflow on zones. `allowed` limits the sizes of pools in each zone."""

    dataflow: Dataflow
    zones: Sequence[Zone]
    allowed: Sequence[Sequence[int]]
    choose: Choose
    transfer_s: float = 0.0
    counts: Counts = field(default_factory=Counts)
    _best: Decision | None = None
    _fitting: dict[tuple[int, tuple[str, ...], int], PoolChoice | None] = field(default_factory=dict)
    _least: dict[tuple[int, tuple[str, ...], int], Mapping[str, float] | None] = field(default_factory=dict)

    def best(self, mode: Mode, placements: Sequence[Placement] | None = None) -> Decision | None:
        """The fastest of some placements, by default of all; of equally fast ones the first. None where nothing fits."""
        self._best = None
        for placement in placements if placements is not None else partitions(self.dataflow.roles):
            self.counts.placements += 1
            for decision in self._completions(placement, (), (), mode):
                if self._best is None or decision.seconds < self._best.seconds:
                    self._best = decision
        return self._best

    def _completions(
        self, placement: Placement, zones: tuple[int, ...], sizes: tuple[int, ...], mode: Mode
    ) -> Iterator[Decision]:
        """Decisions that begin with what is chosen for the first pools."""
        if len(sizes) == len(placement):
            if self._is_full(zones, sizes):
                self.counts.complete += 1
                yield from self._decision(placement, zones, sizes)
            return
        if mode == "pruned" and self._best is not None:
            bound = self._bound(placement, zones, sizes)
            if bound is None or bound >= self._best.seconds:
                self.counts.pruned += 1
                return
        for zone, size in self._next(placement, zones, sizes):
            yield from self._completions(placement, (*zones, zone), (*sizes, size), mode)

    def _next(self, placement: Placement, zones: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """Zones and sizes of the next pool that leave enough for those after it, largest first."""
        left = len(placement) - len(sizes) - 1
        for zone in range(len(self.zones)):
            room = self._left(zone, zones, sizes)
            for size in sorted(self.allowed[zone], reverse=True):
                if size > room or (left == 0 and len(self.zones) == 1 and size != room):
                    continue
                if left and len(self.zones) == 1 and size == room:
                    continue
                if self.fitting(zone, placement[len(sizes)], size) is not None:
                    yield zone, size

    def _left(self, zone: int, zones: tuple[int, ...], sizes: tuple[int, ...]) -> int:
        used = sum(n for z, n in zip(zones, sizes, strict=True) if z == zone)
        return self.zones[zone].size - used

    def _is_full(self, zones: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
        """Whether every zone that is used is used up; a zone may be left alone."""
        return all(self._left(zone, zones, sizes) == 0 for zone in set(zones))

    def _decision(self, placement: Placement, zones: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[Decision]:
        pools = [self.fitting(z, roles, n) for z, roles, n in zip(zones, placement, sizes, strict=True)]
        seconds: dict[str, float] = {}
        for pool in pools:
            assert pool is not None
            seconds.update(pool.seconds)
        took = timeline(self.dataflow, seconds, _pool_of(placement), transfer_s=self.transfer_s).seconds
        yield Decision(placement=placement, zones=zones, sizes=sizes, pools=tuple(p for p in pools if p), seconds=took)

    def _bound(self, placement: Placement, zones: tuple[int, ...], sizes: tuple[int, ...]) -> float | None:
        """Seconds that no completion is below; None where some pool fits nowhere."""
        seconds: dict[str, float] = {}
        for i, roles in enumerate(placement):
            if i < len(sizes):
                chosen = self.fitting(zones[i], roles, sizes[i])
                assert chosen is not None
                seconds.update(chosen.seconds)
                continue
            least = [
                found
                for zone in range(len(self.zones))
                if (found := self._least_seconds(zone, roles, self._left(zone, zones, sizes))) is not None
            ]
            if not least:
                return None
            seconds.update({name: min(one[name] for one in least) for name in least[0]})
        return timeline(self.dataflow, seconds, _pool_of(placement)).seconds

    def _least_seconds(self, zone: int, roles: tuple[str, ...], room: int) -> Mapping[str, float] | None:
        """The least of each call on any pool of a zone that is not larger than `room`."""
        key = (zone, roles, room)
        if key not in self._least:
            fits = [self.fitting(zone, roles, n) for n in self.allowed[zone] if n <= room]
            known = [f.seconds for f in fits if f is not None]
            self._least[key] = {name: min(k[name] for k in known) for name in known[0]} if known else None
        return self._least[key]

    def fitting(self, zone: int, roles: tuple[str, ...], n: int) -> PoolChoice | None:
        """The fastest choice for a pool of `n` ranks, or of fewer of them; None where nothing fits."""
        key = (zone, roles, n)
        if key not in self._fitting:
            smaller = max((size for size in self.allowed[zone] if size < n), default=0)
            before = self.fitting(zone, roles, smaller) if smaller else None
            own = self.choose(zone, roles, n)
            own = own if own is not None and own.fits else None
            self._fitting[key] = own if own is not None and (before is None or own.busy_s < before.busy_s) else before
        return self._fitting[key]


def _pool_of(placement: Placement) -> dict[str, int]:
    return {role: i for i, roles in enumerate(placement) for role in roles}
