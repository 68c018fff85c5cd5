"""A fabric from any graph: rings, random peer-to-peer overlays, and what users draw. Routes are shortest paths, found once each."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costmodels.specs import StoreSpec
from simcore.engine.grouping import mix

if TYPE_CHECKING:
    import networkx as nx

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GraphFabric:
    """A directed graph whose edges are links with `capacity_B_per_s` and `latency_s`; `nodes[rank]` is where a rank sits.

    The way between two ranks is the one with the least latency, ties by fewest links and then by the order of the edges, so that it
    is the same in every run. Every rank is a host of its own. Stores sit at the nodes in `store_at`.
    """

    network: "nx.DiGraph[Any]"
    nodes: Sequence[Hashable]
    stores: Mapping[str, StoreSpec] = field(default_factory=dict)
    store_at: Mapping[str, Hashable] = field(default_factory=dict)
    _trees: dict[Hashable, dict[Hashable, int]] = field(default_factory=dict)

    @property
    def n_ranks(self) -> int:
        return len(self.nodes)

    @cached_property
    def _edges(self) -> list[tuple[Hashable, Hashable]]:
        return list(self.network.edges)

    @cached_property
    def _number(self) -> dict[tuple[Hashable, Hashable], int]:
        return {edge: i for i, edge in enumerate(self._edges)}

    @cached_property
    def capacity_B_per_s(self) -> Floats:
        """Edges of the graph, then for each store reading and writing."""
        edges = [float(self.network.edges[e]["capacity_B_per_s"]) for e in self._edges]
        return np.array([*edges, *(rate for s in self.stores.values() for rate in (s.read_B_per_s, s.write_B_per_s))])

    @cached_property
    def latency_s(self) -> Floats:
        edges = [float(self.network.edges[e]["latency_s"]) for e in self._edges]
        return np.array([*edges, *([0.0] * 2 * len(self.stores))])

    def node_of(self, ranks: Ints) -> Ints:
        return ranks

    def intra_ports(self, ranks: Ints) -> tuple[Ints, Ints]:
        """Ranks have no port inside a host."""
        none = np.full(ranks.shape, -1, dtype=np.int64)
        return none, none

    def net_ports(self, ranks: Ints) -> tuple[Ints, Ints]:
        """Nor one to the network: what a collective crosses are the links between its members."""
        return self.intra_ports(ranks)

    def core_links(self, sources: Ints, targets: Ints) -> Ints:
        return self.routes(sources, targets)

    def distance(self, sources: Ints, targets: Ints) -> Ints:
        """Latency and rate of the way, as one number."""
        routes = self.routes(sources, targets)
        there = np.maximum(routes, 0)
        latency = np.where(routes >= 0, self.latency_s[there], 0.0).sum(axis=1)
        rate = np.where(routes >= 0, self.capacity_B_per_s[there], np.inf).min(axis=1)
        return (mix(latency.view(np.int64)) ^ mix(mix(rate.view(np.int64)))).view(np.int64)

    def ring(self, members: Ints) -> tuple[float, float]:
        """A link that several steps of the ring cross has only its share for each."""
        routes = self.routes(members, np.roll(members, -1))
        links, counts = np.unique(routes[routes >= 0], return_counts=True)
        latency = np.where(routes >= 0, self.latency_s[np.maximum(routes, 0)], 0.0).sum(axis=1)
        return float((self.capacity_B_per_s[links] / counts).min(initial=np.inf)), float(latency.max())

    def routes(self, sources: Ints, targets: Ints) -> Ints:
        found = [self._way(int(a), int(b)) for a, b in zip(sources.ravel(), targets.ravel(), strict=True)]
        table = np.full((len(found), max((len(f) for f in found), default=0) or 1), -1, dtype=np.int64)
        for i, way in enumerate(found):
            table[i, : len(way)] = way
        return table

    def _way(self, source: int, target: int) -> list[int]:
        """Links from one rank to another."""
        return self._between(self.nodes[source], self.nodes[target])

    def _tree(self, start: Hashable) -> dict[Hashable, int]:
        """For every node the link by which the shortest path from `start` enters it (Dijkstra)."""
        if start not in self._trees:
            into: dict[Hashable, int] = {}
            done: set[Hashable] = set()
            heap: list[tuple[float, int, int, Hashable, int]] = [(0.0, 0, 0, start, -1)]
            pushed = 0
            while heap:
                latency, hops, _, node, link = heappop(heap)
                if node in done:
                    continue
                done.add(node)
                if link >= 0:
                    into[node] = link
                for following in self.network.successors(node):
                    if following not in done:
                        edge = self._number[(node, following)]
                        pushed += 1
                        heappush(heap, (latency + float(self.latency_s[edge]), hops + 1, pushed, following, edge))
            self._trees[start] = into
        return self._trees[start]

    def store_routes(self, store: str, ranks: Ints, *, write: bool) -> Ints:
        own = len(self._edges) + 2 * list(self.stores).index(store) + int(write)
        at = self.store_at.get(store)
        ways = []
        for rank in ranks.ravel().tolist():
            here = self.nodes[rank]
            ends = (here, at) if write else (at, here)
            ways.append([*(self._between(*ends) if at is not None and at != here else []), own])
        table = np.full((len(ways), max(len(w) for w in ways)), -1, dtype=np.int64)
        for i, way in enumerate(ways):
            table[i, : len(way)] = way
        return table

    def _between(self, start: Hashable, at: Hashable) -> list[int]:
        """Links from node to node, followed back through the tree of shortest paths."""
        into = self._tree(start)
        way: list[int] = []
        while at != start:
            way.append(into[at])
            at = self._edges[into[at]][0]
        return way[::-1]

    def link_name(self, link: int) -> str:
        if link < len(self._edges):
            a, b = self._edges[link]
            return f"{a} -> {b}"
        which, write = divmod(link - len(self._edges), 2)
        return f"store {list(self.stores)[which]} {'write' if write else 'read'}"

    def graph(self) -> "nx.DiGraph[Any]":
        """The graph with `link` numbers on its edges."""
        out = self.network.copy()
        for i, edge in enumerate(self._edges):
            out.edges[edge]["link"] = i
        return out
