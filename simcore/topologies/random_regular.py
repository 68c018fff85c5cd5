"""Peers that each know as many others, chosen at random: the overlay of peer-to-peer systems."""

import networkx as nx
from pydantic import Field

from costmodels.catalog import Catalog
from costmodels.errors import Problem
from simcore.cluster import Cluster
from simcore.errors import ScenarioError
from simcore.network.graphs import Peers, peers_cluster

TRIES = 100


class Params(Peers):
    """Equal peers."""

    nodes: int = Field(ge=2, le=10_000, description="Peers, one rank each.")
    degree: int = Field(ge=1, le=1000, description="Neighbours of each peer.")
    seed: int = Field(0, ge=0, lt=2**32, description="The overlay follows from it.")


def build(params: Params, catalog: Catalog) -> Cluster:
    """A connected overlay. Raises `ScenarioError` where nodes and degree allow none."""
    n, degree = params.nodes, params.degree
    if degree >= n or (n * degree) % 2 or (degree == 1 and n > 2):
        allowed = f"2 to {n - 1}, and even where nodes is odd" if n > 2 else "1"
        problem = Problem("cluster.degree", f"{degree} with {n} nodes", allowed)
        raise ScenarioError("no such overlay", [problem])
    for attempt in range(TRIES):
        graph = nx.random_regular_graph(degree, n, seed=params.seed + attempt)
        if nx.is_connected(graph):
            return peers_cluster("random_regular", params, n, sorted(tuple(sorted(e)) for e in graph.edges), catalog)
    problem = Problem(
        "cluster.degree", str(degree), "a degree at which random overlays hang together", "Take a larger one."
    )
    raise ScenarioError("no connected overlay was found", [problem])
