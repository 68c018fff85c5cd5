"""One host; its ranks talk over the link inside it. With several pools, one host of each, joined by their network links."""

from costmodels.catalog import Catalog
from simcore.cluster import Cluster
from simcore.network.hosts import build_hosts
from simcore.network.pools import Hosts


class Params(Hosts):
    """A host with `devices_per_node` ranks."""


def build(params: Params, catalog: Catalog) -> Cluster:
    """The cluster; `nodes` above one needs `inter`, over a network that holds nobody back."""
    return build_hosts("single_node", params, catalog, network=True)
