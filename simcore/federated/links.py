"""Flows on a cluster's links: the way, the latency and the rate of each when it is alone, for many flows at once."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.federated.strategies import Access
from simcore.plan import Transfer

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Ways(NamedTuple):
    """(flows,) latency and rate alone; `route` (flows, most) links, -1 where a way is shorter."""

    latency_s: Floats
    cap_B_per_s: Floats
    route: Ints


class Links:
    """The links of `cluster` at the prices of `cost`. Clients are its first ranks, the server is the last."""

    def __init__(self, cluster: Cluster, cost: Costs) -> None:
        self.cluster, self.cost = cluster, cost
        self.clients = cluster.n_ranks - 1
        self.capacity_B_per_s = cluster.fabric.capacity_B_per_s

    @property
    def server(self) -> int:
        return self.clients

    def ways(self, source: Ints, target: Ints, nbytes: Ints) -> Ways:
        """As the engine has them: one question to the cost model for flows of one size between ranks placed alike."""
        if len(source) == 0:
            return Ways(np.empty(0), np.empty(0), np.empty((0, 1), dtype=np.int64))
        pairs = np.stack([source, target], axis=1)
        _, alike = np.unique(self.cost.signature(pairs), return_inverse=True)
        sizes, size = np.unique(nbytes, return_inverse=True)
        _, first, kind = np.unique(
            alike.reshape(-1) * len(sizes) + size.reshape(-1), return_index=True, return_inverse=True
        )
        found = []
        for i in first.tolist():
            op = Transfer(source="", target="", nbytes=int(nbytes[i]))
            found.append(self.cost.demands(op, pairs[i : i + 1])[0])
        latency, cap = np.array([d.latency_s for d in found]), np.array([d.cap_B_per_s for d in found])
        kind = kind.reshape(-1)
        return Ways(latency[kind], cap[kind], self.cluster.fabric.routes(source, target))

    def access(self) -> Access:
        """What clients' own links carry, to and from the server's region."""
        clients, fabric = np.arange(self.clients), self.cluster.fabric
        out, into = fabric.net_ports(clients)
        way = fabric.routes(clients, np.full_like(clients, self.server))
        region = getattr(fabric, "region_of", np.zeros(self.cluster.n_ranks, dtype=np.int64))
        return Access(
            up_B_per_s=self.capacity_B_per_s[out],
            down_B_per_s=self.capacity_B_per_s[into],
            latency_s=np.where(way >= 0, fabric.latency_s[np.maximum(way, 0)], 0.0).sum(axis=1),
            region=np.asarray(region[: self.clients], dtype=np.int64),
        )
