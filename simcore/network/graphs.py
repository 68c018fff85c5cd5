"""From a graph to a cluster: what ring, random_regular and graph_file have in common. Every rank is a host of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from costmodels.catalog import Catalog
from costmodels.errors import Problem
from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec
from simcore.cluster import Cluster
from simcore.errors import ScenarioError
from simcore.network.graph_fabric import GraphFabric
from simcore.network.hosts import Lookup


class Peers(BaseModel):
    """Equal hosts with one rank each."""

    model_config = ConfigDict(extra="forbid")

    device: str = Field(description="Catalogue name of every rank's device.")
    link: str = Field(description="Catalogue name of the link between neighbours.")
    stores: list[str] = Field(
        default_factory=list, max_length=16, description="Catalogue names of stores, at the first host."
    )


def peers_cluster(name: str, params: Peers, n: int, pairs: Sequence[tuple[int, int]], catalog: Catalog) -> Cluster:
    """`n` equal hosts with links between `pairs`, both ways."""
    problems: list[Problem] = []
    look = Lookup(catalog, problems)
    device, link = look.device(params.device, "cluster.device"), look.link(params.link, "cluster.link")
    stores = {s: look.store(s, f"cluster.stores.{i}") for i, s in enumerate(params.stores)}
    if problems or device is None or link is None:
        raise ScenarioError("the cluster cannot be built", problems)
    graph: nx.Graph[Any] = nx.Graph()
    graph.add_nodes_from(f"rank {i}" for i in range(n))
    graph.add_edges_from((f"rank {a}", f"rank {b}") for a, b in pairs)
    links = dict.fromkeys(graph.edges, link)
    at = {s: (spec, "rank 0") for s, spec in stores.items() if spec is not None}
    return graph_cluster(name, graph, list(graph.nodes), [device] * n, links, at)


def graph_cluster(
    name: str,
    graph: "nx.Graph[Any]",
    ranks: Sequence[Any],
    devices: Sequence[DeviceSpec],
    links: Mapping[tuple[Any, Any], LinkSpec],
    stores: Mapping[str, tuple[StoreSpec, Any]],
) -> Cluster:
    """`ranks[i]` is the node of rank i with `devices[i]`; an edge of an undirected graph is a link in each direction."""
    network: nx.DiGraph[Any] = nx.DiGraph()
    network.add_nodes_from(graph.nodes)
    for (a, b), link in links.items():
        for ends in ((a, b), (b, a)) if not graph.is_directed() else ((a, b),):
            network.add_edge(*ends, capacity_B_per_s=link.B_per_s * link.efficiency, latency_s=link.latency_s)
    kinds = list(dict.fromkeys(devices))
    specs = {s: spec for s, (spec, _) in stores.items()}
    slowest = min(links.values(), key=lambda x: x.B_per_s * x.efficiency, default=None)
    return Cluster(
        name=name,
        devices=tuple(kinds),
        device_index=np.array([kinds.index(d) for d in devices], dtype=np.int64),
        fabric=GraphFabric(network, ranks, specs, {s: at for s, (_, at) in stores.items()}),
        intra=(None,) * len(kinds),
        inter=(slowest,) * len(kinds),
        stores=specs,
    )
