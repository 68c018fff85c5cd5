"""Hosts with ports, leaves above them and a core above those: one fabric for every regular topology, routed by arithmetic.

Every rank has a port out and in inside its host, and one out and in to the network where there is one. Network ports hang on
leaf switches; a route between leaves goes over the leaf's uplinks. A core that is not oversubscribed and routes adaptively
never holds anybody back and has no links here. With `ecmp` a flow takes one uplink, chosen by a hash of its ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from costmodels.specs import LinkSpec, StoreSpec

if TYPE_CHECKING:
    import networkx as nx

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
HOP_S = 0.3e-6
"""One switch of the core, cut through (vendors state 0.13 to 0.5 us)."""


@dataclass(frozen=True, slots=True)
class Leaves:
    """`of` (n_ranks,) leaf of each rank's network port; `uplinks` of `uplink_B_per_s` each from every leaf to the core."""

    of: Ints
    uplinks: int
    uplink_B_per_s: Floats  # (leaves,)

    @property
    def count(self) -> int:
        return len(self.uplink_B_per_s)


@dataclass(frozen=True)
class HostFabric:
    """See the module. Arrays are by rank; `net_out` and `net_in` may differ (access links of clients)."""

    node: Ints
    local: Ints
    intra: Sequence[LinkSpec | None]  # by kind
    out: Sequence[LinkSpec | None]
    into: Sequence[LinkSpec | None]
    kind: Ints  # (n_ranks,) position in the three lists
    leaves: Leaves | None = None
    stores: Mapping[str, StoreSpec] = field(default_factory=dict)

    @property
    def n_ranks(self) -> int:
        return len(self.node)

    @cached_property
    def n_nodes(self) -> int:
        return int(self.node.max()) + 1

    def _by_rank(self, links: Sequence[LinkSpec | None], attribute: str) -> Floats:
        def value(link: LinkSpec | None) -> float:
            if link is None:
                return 0.0
            return link.B_per_s * link.efficiency if attribute == "rate" else link.latency_s

        return np.array([value(link) for link in links], dtype=np.float64)[self.kind]

    @cached_property
    def _sections(self) -> dict[str, tuple[int, int]]:
        """First link and number of links of each section."""
        sizes = {"intra out": self.n_ranks, "intra in": self.n_ranks, "net out": self.n_ranks, "net in": self.n_ranks}
        if self.leaves is not None:
            sizes["up"] = sizes["down"] = self.leaves.count * self.leaves.uplinks
        for name, store in self.stores.items():
            sizes[f"read {name}"] = sizes[f"write {name}"] = 1 if store.shared else self.n_nodes
        first, out = 0, {}
        for name, size in sizes.items():
            out[name] = (first, size)
            first += size
        return out

    @cached_property
    def capacity_B_per_s(self) -> Floats:
        intra = self._by_rank(self.intra, "rate")
        parts = [intra, intra, self._by_rank(self.out, "rate"), self._by_rank(self.into, "rate")]
        if self.leaves is not None:
            up = np.repeat(self.leaves.uplink_B_per_s, self.leaves.uplinks)
            parts += [up, up]
        for store in self.stores.values():
            size = 1 if store.shared else self.n_nodes
            parts += [np.full(size, store.read_B_per_s), np.full(size, store.write_B_per_s)]
        return np.concatenate(parts)

    @cached_property
    def latency_s(self) -> Floats:
        out = np.zeros(len(self.capacity_B_per_s))
        n = self.n_ranks
        out[:n] = self._by_rank(self.intra, "latency")
        out[2 * n : 3 * n] = self._by_rank(self.out, "latency")
        for name in ("up", "down"):
            if name in self._sections:
                first, size = self._sections[name]
                out[first : first + size] = HOP_S
        return out

    def node_of(self, ranks: Ints) -> Ints:
        return self.node[ranks]

    def intra_ports(self, ranks: Ints) -> tuple[Ints, Ints]:
        """Links out of and into each rank inside its host."""
        return ranks, self.n_ranks + ranks

    def net_ports(self, ranks: Ints) -> tuple[Ints, Ints]:
        """Links out of and into each rank's network port."""
        return 2 * self.n_ranks + ranks, 3 * self.n_ranks + ranks

    def distance(self, sources: Ints, targets: Ints) -> Ints:
        """0 on one host, 1 below one leaf, 2 across the core."""
        if self.leaves is None:
            return np.asarray(self.node[sources] != self.node[targets], dtype=np.int64)
        near = self.node[sources] == self.node[targets]
        below = self.leaves.of[sources] == self.leaves.of[targets]
        return np.where(near, 0, np.where(below, 1, 2)).astype(np.int64)

    def ring(self, members: Ints) -> tuple[float, float]:
        out, into = self.net_ports(members)
        rate = min(self.capacity_B_per_s[out].min(), self.capacity_B_per_s[into].min())
        return float(rate), float(self.latency_s[out].max())

    def core_links(self, sources: Ints, targets: Ints) -> Ints:
        """Uplink and downlink between the leaves of two ranks, -1 where they share a leaf or the core has no links."""
        if self.leaves is None or self.leaves.uplinks == 0:
            return np.full((len(sources), 2), -1, dtype=np.int64)
        a, b = self.leaves.of[sources], self.leaves.of[targets]
        way = _hash(sources, targets) % self.leaves.uplinks
        away = (a != b) & (self.node[sources] != self.node[targets])
        up = self._sections["up"][0] + a * self.leaves.uplinks + way
        down = self._sections["down"][0] + b * self.leaves.uplinks + way
        return np.stack([np.where(away, up, -1), np.where(away, down, -1)], axis=1)

    def routes(self, sources: Ints, targets: Ints) -> Ints:
        same = self.node[sources] == self.node[targets]
        (near_out, near_in), (far_out, far_in) = self.intra_ports(sources), self.net_ports(sources)
        near_in, far_in = self.intra_ports(targets)[1], self.net_ports(targets)[1]
        up, down = self.core_links(sources, targets).T
        columns = (
            np.where(same, near_out, far_out),
            np.where(same, near_in, up),
            np.where(same, -1, down),
            np.where(same, -1, far_in),
        )
        table = np.stack(columns, axis=1)
        table[sources == targets] = -1
        order = np.argsort(table < 0, axis=1, kind="stable")
        return np.take_along_axis(table, order, axis=1)

    def store_routes(self, store: str, ranks: Ints, *, write: bool) -> Ints:
        first, size = self._sections[f"{'write' if write else 'read'} {store}"]
        port = first + (self.node[ranks] if size > 1 or not self.stores[store].shared else 0)
        port = np.broadcast_to(port, ranks.shape)
        if not self.stores[store].shared or not self.capacity_B_per_s[self.net_ports(ranks)[0]].all():
            return port[:, None]
        near = self.net_ports(ranks)[0 if write else 1]
        return np.stack([near, port], axis=1)

    def link_name(self, link: int) -> str:
        for name, (first, size) in self._sections.items():
            if first <= link < first + size:
                return self._name(name, link - first)
        raise IndexError(link)

    def _name(self, section: str, i: int) -> str:
        what, _, way = section.partition(" ")
        if what in ("intra", "net"):
            port = "port" if what == "intra" else "nic"
            return f"rank {i} {port} {way}"
        if what in ("up", "down"):
            assert self.leaves is not None
            return f"leaf {i // self.leaves.uplinks} {what}link {i % self.leaves.uplinks}"
        return f"store {way} {what}" + ("" if self.stores[way].shared else f" on node {i}")

    def graph(self) -> "nx.DiGraph[str]":
        """Ranks, host switches, leaves, core and stores; only links that have a capacity."""
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph()
        for link, (a, b) in enumerate(self._ends()):
            if self.capacity_B_per_s[link] > 0:
                graph.add_edge(
                    a, b, link=link, capacity_B_per_s=self.capacity_B_per_s[link], latency_s=self.latency_s[link]
                )
        return graph

    def _ends(self) -> list[tuple[str, str]]:
        ranks = range(self.n_ranks)
        host = [f"node {n}" for n in self.node.tolist()]
        leaf = [f"leaf {x}" for x in self.leaves.of.tolist()] if self.leaves is not None else ["network"] * self.n_ranks
        out = [(f"rank {r}", host[r]) for r in ranks] + [(host[r], f"rank {r}") for r in ranks]
        out += [(f"rank {r}", leaf[r]) for r in ranks] + [(leaf[r], f"rank {r}") for r in ranks]
        if self.leaves is not None:
            ways = [(f"leaf {x}", f"spine {u}") for x in range(self.leaves.count) for u in range(self.leaves.uplinks)]
            out += ways + [(b, a) for a, b in ways]
        for name, store in self.stores.items():
            at = [""] if store.shared else [f" on node {i}" for i in range(self.n_nodes)]
            out += [(f"store {name}{x}", "network" if store.shared else x[4:]) for x in at]
            out += [("network" if store.shared else x[4:], f"store {name}{x}") for x in at]
        return out


def _hash(a: Ints, b: Ints) -> Ints:
    """A number for each pair, the same on every machine."""
    with np.errstate(over="ignore"):
        x = a.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + b.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        x ^= x >> np.uint64(29)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(32)
    return (x >> np.uint64(1)).astype(np.int64)
