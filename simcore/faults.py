"""What breaks, and when: the `faults:` of a scenario, and the events they become on a cluster.

faults:
  - {kind: device_slows, rank: 3, factor: 0.5, at: 1 s, until: 4 s}
  - {kind: device_dies, rank: 3, at: 10 s}
  - {kind: link_degrades, between: [0, 8], factor: 0.25, at: 0 s}
  - {kind: link_drops, link: "nic 8 -> *", at: 2 s, until: 3 s}
  - {kind: device_dies, mtbf: 50000 hours, horizon: 1 hour}     # every device, exponential, drawn from the scenario's seed
"""

import difflib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simcore.cluster import Cluster
from simcore.errors import Problem, ScenarioError
from simcore.quantity import Seconds


class _Fault(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    at: Seconds | None = Field(None, description="When it happens, from the start of the run.")
    until: Seconds | None = Field(None, description="When it is over; without it, never.")
    mtbf: Seconds | None = Field(None, description="Mean time between failures of one device or link, instead of `at`.")
    repair: Seconds | None = Field(None, description="With `mtbf`: how long each failure lasts; without it, for good.")
    horizon: Seconds = Field(3600.0, description="With `mtbf`: how far ahead failures are drawn.")

    @model_validator(mode="after")
    def _one_way_to_say_when(self) -> "_Fault":
        if (self.at is None) == (self.mtbf is None):
            raise ValueError("give either `at` or `mtbf`")
        if self.at is not None and self.until is not None and self.until <= self.at:
            raise ValueError("`until` must be later than `at`")
        return self


class _DeviceFault(_Fault):
    rank: int | None = Field(
        None, ge=0, description="The rank whose device it is; may be left out with `mtbf` (every device)."
    )


class DeviceDies(_DeviceFault):
    """A device stops: nothing of it ends or starts any more. Recovery is a new plan, not part of a run."""

    kind: Literal["device_dies"]


class DeviceSlows(_DeviceFault):
    """A device computes at `factor` of its speed."""

    kind: Literal["device_slows"]
    factor: float = Field(gt=0, le=1, description="Share of the speed that is left.")


class _LinkFault(_Fault):
    link: str | None = Field(None, description="Name of a link as reports print it, `*` matches anything.")
    between: tuple[int, int] | None = Field(
        None, description="Two ranks: every link on the way from one to the other and back."
    )

    @model_validator(mode="after")
    def _one_way_to_say_where(self) -> "_LinkFault":
        if (self.link is None) == (self.between is None):
            raise ValueError("give either `link` or `between`")
        return self


class LinkDegrades(_LinkFault):
    """A link carries `factor` of its capacity."""

    kind: Literal["link_degrades"]
    factor: float = Field(gt=0, le=1, description="Share of the capacity that is left.")


class LinkDrops(_LinkFault):
    """A link carries nothing."""

    kind: Literal["link_drops"]


FaultSpec = Annotated[DeviceDies | DeviceSlows | LinkDegrades | LinkDrops, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Event:
    """At `at_s` the speed of `ranks` or the capacity of `links` is multiplied by `factor`; 0 on ranks means death."""

    at_s: float
    factor: float
    ranks: tuple[int, ...] = ()
    links: tuple[int, ...] = ()


def events(faults: Sequence[FaultSpec], cluster: Cluster, seed: int) -> tuple[Event, ...]:
    """Everything that will happen, in order of time. Raises `ScenarioError` for ranks or links that do not exist."""
    problems: list[Problem] = []
    found: list[Event] = []
    for i, fault in enumerate(faults):
        rng = np.random.default_rng([seed, i])
        try:
            places = _places(fault, cluster, f"faults.{i}")
        except ScenarioError as error:
            problems += error.problems
            continue
        for place in places:
            found += _timeline(fault, place, rng)
    if problems:
        raise ScenarioError("faults that do not fit the cluster", problems)
    return tuple(sorted(found, key=lambda e: e.at_s))


def _timeline(fault: FaultSpec, place: Event, rng: np.random.Generator) -> Iterator[Event]:
    """The event of one place with its end, or as many as the horizon holds."""
    factor = getattr(fault, "factor", 0.0)
    if fault.at is not None:
        yield from _pulse(place, fault.at, fault.until, factor)
        return
    assert fault.mtbf is not None
    now = float(rng.exponential(fault.mtbf))
    while now < fault.horizon:
        over = None if fault.repair is None else now + fault.repair
        yield from _pulse(place, now, over, factor)
        if over is None:
            return
        now = over + float(rng.exponential(fault.mtbf))


def _pulse(place: Event, at_s: float, until_s: float | None, factor: float) -> Iterator[Event]:
    yield Event(at_s, factor, place.ranks, place.links)
    if until_s is not None and factor > 0:
        yield Event(until_s, 1 / factor, place.ranks, place.links)
    elif until_s is not None and place.links:
        yield Event(until_s, np.inf, place.ranks, place.links)


def _places(fault: FaultSpec, cluster: Cluster, field: str) -> list[Event]:
    if isinstance(fault, (DeviceDies, DeviceSlows)):
        if fault.rank is None and fault.mtbf is not None:
            return [Event(0.0, 1.0, ranks=(r,)) for r in range(cluster.n_ranks)]
        if fault.rank is None or fault.rank >= cluster.n_ranks:
            raise _wrong(f"{field}.rank", fault.rank, f"0 to {cluster.n_ranks - 1}")
        return [Event(0.0, 1.0, ranks=(fault.rank,))]
    links = _links(fault, cluster, field)
    if fault.mtbf is not None:
        return [Event(0.0, 1.0, links=(link,)) for link in links]
    return [Event(0.0, 1.0, links=tuple(links))]


def _links(fault: LinkDegrades | LinkDrops, cluster: Cluster, field: str) -> list[int]:
    if fault.between is not None:
        if not all(0 <= r < cluster.n_ranks for r in fault.between) or len(set(fault.between)) < 2:
            raise _wrong(f"{field}.between", fault.between, f"two different ranks, 0 to {cluster.n_ranks - 1}")
        there = np.array(fault.between, dtype=np.int64)
        routes = cluster.fabric.routes(there, there[::-1])
        return sorted({int(link) for link in routes.ravel() if link >= 0})
    names = [cluster.fabric.link_name(link) for link in range(len(cluster.fabric.capacity_B_per_s))]
    pattern = fault.link or ""
    matching = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
    if not matching:
        close = difflib.get_close_matches(pattern, names[:10_000], n=3) or names[:3]
        raise _wrong(f"{field}.link", pattern, "the name of a link, e.g. " + ", ".join(map(repr, close)))
    return matching


def _wrong(field: str, given: object, allowed: str) -> ScenarioError:
    return ScenarioError("a fault that does not fit the cluster", [Problem(field, repr(given), allowed)])


def touched(found: Sequence[Event], n_ranks: int, n_links: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """For each rank and each link a number that is equal where the same events strike."""
    ranks, links = np.zeros(n_ranks, dtype=np.uint64), np.zeros(n_links, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for i, event in enumerate(found):
            stamp = np.uint64(0x9E3779B97F4A7C15) * np.uint64(i + 1)
            ranks[[r for r in event.ranks if r < n_ranks]] += stamp
            links[list(event.links)] += stamp
    return ranks, links
