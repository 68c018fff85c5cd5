"""Hosts in a ring, each with a link to both neighbours; what is further goes through those between."""

from pydantic import Field

from costmodels.catalog import Catalog
from simcore.cluster import Cluster
from simcore.network.graphs import Peers, peers_cluster


class Params(Peers):
    """Equal hosts in a ring."""

    nodes: int = Field(ge=2, le=10_000, description="Hosts in the ring, one rank each.")


def build(params: Params, catalog: Catalog) -> Cluster:
    """The cluster."""
    n = params.nodes
    pairs = [(i, (i + 1) % n) for i in range(n if n > 2 else 1)]
    return peers_cluster("ring", params, n, pairs, catalog)
