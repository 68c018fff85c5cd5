"""Which ranks behave the same (law 5): an equitable partition of ranks, communicators and links by colour refinement.

Colours are 64-bit numbers. Ranks start with what they are (device, faults, groups). A communicator's colour mixes those of its
members and links, a link's those of the communicators that cross it, a rank's those of its communicators; this is repeated
until no class splits. Then every member of a class meets as many partners of each other class, over as contended links, as any
other member, so that the (unique) max-min rates and therefore all times agree within a class, and one member stands for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Colours = NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: NDArray[np.generic] | int) -> Colours:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): close numbers become unrelated ones; arrays keep their shape."""
    with np.errstate(over="ignore"):
        z = np.asarray(x).astype(np.uint64) + GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


@dataclass(slots=True)
class Communicators:
    """Instances that a plan's ops of one placement run in.

    members (k, m) ranks; roles (m,) tells positions apart that are not interchangeable (source and target of a transfer);
    signature (k,): equal numbers, equal placement. `uses` lists for each op the links: (instance (e,), link (e,), weight (e,)).
    """

    members: Ints
    roles: Ints
    signature: Ints
    uses: list[tuple[Ints, Ints, NDArray[np.float64]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Partition:
    """Classes are numbered by their first member. `ranks` (n_ranks,), `instances[placement]` (k,), `links` (n_links,)."""

    ranks: Ints
    instances: tuple[Ints, ...]
    links: Ints

    @property
    def n_classes(self) -> int:
        return int(self.ranks.max()) + 1 if len(self.ranks) else 0


def number_by_first(colours: Colours) -> Ints:
    """Class of each element, counted in the order in which classes first appear."""
    _, first, inverse = np.unique(colours, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return np.asarray(place[inverse.reshape(-1)], dtype=np.int64)


def first_members(numbers: Ints) -> list[int]:
    """Position of the first member of each class."""
    return [int(i) for i in np.unique(numbers, return_index=True)[1]]


def partition(rank_colour: Colours, link_colour: Colours, placements: Sequence[Communicators]) -> Partition:
    """The coarsest partition that nothing tells apart, from initial colours (n_ranks,) and (n_links,)."""
    bases = [mix(p.signature) ^ mix(1_000_003 * (i + 1)) for i, p in enumerate(placements)]
    weights = [[mix(w.view(np.int64)) ^ mix(7_919 * (j + 1)) for j, (_, _, w) in enumerate(p.uses)] for p in placements]
    ranks, links, instances = rank_colour, link_colour, bases
    counts = (0, 0)
    while True:
        instances = [
            _instance_colours(base, p, weight, ranks, links)
            for base, p, weight in zip(bases, placements, weights, strict=True)
        ]
        new_ranks, new_links = ranks.copy(), links.copy()
        for colours, p, weight in zip(instances, placements, weights, strict=True):
            _tell_members(new_ranks, new_links, colours, p, weight)
        ranks, links = mix(new_ranks), mix(new_links)
        new_counts = (len(np.unique(ranks)), len(np.unique(links)))
        if new_counts == counts:
            break
        counts = new_counts
    return Partition(number_by_first(ranks), tuple(number_by_first(c) for c in instances), number_by_first(links))


def _instance_colours(
    base: Colours, p: Communicators, weights: list[Colours], ranks: Colours, links: Colours
) -> Colours:
    with np.errstate(over="ignore"):
        colour = base + mix(ranks[p.members] ^ mix(p.roles)).sum(axis=1, dtype=np.uint64)
        for (instance, link, _), weight in zip(p.uses, weights, strict=True):
            np.add.at(colour, instance, mix(links[link] ^ weight))
    return mix(colour)


def _tell_members(ranks: Colours, links: Colours, colours: Colours, p: Communicators, weights: list[Colours]) -> None:
    with np.errstate(over="ignore"):
        for role in np.unique(p.roles):  # in one role a rank stands in one instance only, so plain indexing adds up
            ranks[p.members[:, p.roles == role]] += mix(colours ^ mix(role))[:, None]
        for (instance, link, _), weight in zip(p.uses, weights, strict=True):
            np.add.at(links, link, mix(colours[instance] ^ weight))


def singletons(n_ranks: int, n_links: int, sizes: Sequence[int]) -> Partition:
    """Every rank, instance (`sizes` of them in each placement) and link by itself."""
    return Partition(np.arange(n_ranks), tuple(np.arange(k) for k in sizes), np.arange(n_links))
