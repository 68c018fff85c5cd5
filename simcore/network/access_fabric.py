"""Access links of clients around an internet that holds nobody back: a rank has one link up and one down for all its flows.

Regions lie apart: after the sender's own link a flow crosses a link that the sender alone has to the target's region. It adds the
latency of the way and holds the sender to what one host gets between the two; within a region it does neither.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from costmodels.specs import LinkSpec, StoreSpec
from simcore.errors import CannotRun

if TYPE_CHECKING:
    import networkx as nx

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AccessFabric:
    """See the module. `up`, `down` and `region` are by kind of rank; `between[a][b]` is the link from region a to b, None within.

    Links are numbered: up of each rank, down of each rank, then of each rank those to all regions.
    """

    kind: Ints  # (n_ranks,)
    up: Sequence[LinkSpec]
    down: Sequence[LinkSpec]
    region: Sequence[int]
    regions: Sequence[str]
    between: Sequence[Sequence[LinkSpec | None]]
    stores: Mapping[str, StoreSpec] = field(default_factory=dict)

    @property
    def n_ranks(self) -> int:
        return len(self.kind)

    @cached_property
    def region_of(self) -> Ints:
        """(n_ranks,)"""
        return np.array(self.region, dtype=np.int64)[self.kind]

    @cached_property
    def _apart(self) -> bool:
        return len(self.regions) > 1

    @cached_property
    def capacity_B_per_s(self) -> Floats:
        own = [np.array([x.B_per_s * x.efficiency for x in links])[self.kind] for links in (self.up, self.down)]
        return np.concatenate([*own, self._far(lambda x: x.B_per_s * x.efficiency, np.inf)])

    @cached_property
    def latency_s(self) -> Floats:
        own = [np.array([x.latency_s for x in links])[self.kind] for links in (self.up, self.down)]
        return np.concatenate([*own, self._far(lambda x: x.latency_s, 0.0)])

    @cached_property
    def price_usd_per_B(self) -> Floats:
        """(links,) of traffic between regions; 0 where the catalogue has no price."""
        return np.concatenate([np.zeros(2 * self.n_ranks), self._far(lambda x: x.price_usd_per_B or 0.0, 0.0)])

    def _far(self, value: Callable[[LinkSpec], float], within: float) -> Floats:
        """(n_ranks * regions,) of the links to other regions."""
        if not self._apart:
            return np.empty(0)
        table = np.array([[within if link is None else value(link) for link in row] for row in self.between])
        return np.asarray(table[self.region_of].ravel(), dtype=np.float64)

    def routes(self, sources: Ints, targets: Ints) -> Ints:
        n, near = self.n_ranks, sources == targets
        up, down = np.where(near, -1, sources), np.where(near, -1, n + targets)
        if not self._apart:
            return np.stack([up, down], axis=1)
        table = np.stack([up, self.core_links(sources, targets)[:, 0], down], axis=1)
        return np.asarray(table, dtype=np.int64)

    def core_links(self, sources: Ints, targets: Ints) -> Ints:
        """The sender's link to the region of the target; there are none where all are in one region."""
        far = 2 * self.n_ranks + sources * len(self.regions) + self.region_of[targets]
        return np.where(sources == targets, -1, far)[:, None] if self._apart else np.full((len(sources), 1), -1)

    def store_routes(self, store: str, ranks: Ints, *, write: bool) -> Ints:  # noqa: ARG002 - there are none
        raise CannotRun(f"{store}: clients around a hub have no stores")

    def node_of(self, ranks: Ints) -> Ints:
        return ranks

    def intra_ports(self, ranks: Ints) -> tuple[Ints, Ints]:
        """Ranks have no port inside a host."""
        none = np.full(ranks.shape, -1, dtype=np.int64)
        return none, none

    def net_ports(self, ranks: Ints) -> tuple[Ints, Ints]:
        return ranks, self.n_ranks + ranks

    def distance(self, sources: Ints, targets: Ints) -> Ints:
        """The pair of regions; what access links a rank has is told by its device's place in the cluster."""
        return self.region_of[sources] * len(self.regions) + self.region_of[targets]

    def ring(self, members: Ints) -> tuple[float, float]:
        routes = self.routes(members, np.roll(members, -1))
        there = np.maximum(routes, 0)
        latency = np.where(routes >= 0, self.latency_s[there], 0.0).sum(axis=1)
        rate = np.where(routes >= 0, self.capacity_B_per_s[there], np.inf).min(initial=np.inf)
        return float(rate), float(latency.max())

    def link_name(self, link: int) -> str:
        way, rank = divmod(link, self.n_ranks)
        if way < 2:
            return f"rank {rank} {'up' if way == 0 else 'down'}"
        rank, region = divmod(link - 2 * self.n_ranks, len(self.regions))
        return f"rank {rank} to {self.regions[region]}"

    def graph(self) -> "nx.DiGraph[str]":
        """Ranks, and regions as nodes between them; beyond its link up, a rank's links to regions part."""
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph()
        for link, (a, b) in enumerate(self._ends()):
            graph.add_edge(
                a, b, link=link, capacity_B_per_s=self.capacity_B_per_s[link], latency_s=self.latency_s[link]
            )
        return graph

    def _ends(self) -> list[tuple[str, str]]:
        ranks, regions = range(self.n_ranks), [f"region {name}" for name in self.regions]
        home = [regions[r] for r in self.region_of.tolist()]
        ends = [(f"rank {r}", f"rank {r} out" if self._apart else home[r]) for r in ranks]
        ends += [(home[r], f"rank {r}") for r in ranks]
        return ends + ([(f"rank {r} out", region) for r in ranks for region in regions] if self._apart else [])
