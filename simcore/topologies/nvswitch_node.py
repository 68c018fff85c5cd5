"""One host whose devices hang on a switch (HGX, DGX): every pair talks at the full rate of its ports."""

from costmodels.catalog import Catalog
from costmodels.errors import Problem
from simcore.cluster import Cluster
from simcore.errors import ScenarioError
from simcore.network.hosts import build_hosts
from simcore.network.pools import Hosts


class Params(Hosts):
    """A host with `devices_per_node` ranks on a switched link."""


def build(params: Params, catalog: Catalog) -> Cluster:
    """The cluster; refuses a link without a switch."""
    cluster = build_hosts("nvswitch_node", params, catalog, network=True)
    problems = [
        Problem(
            "cluster.intra", link.name, "a link with a switch: nvlink3, nvlink4, nvlink5", "Otherwise take single_node."
        )
        for link in cluster.intra
        if link is not None and not link.switched
    ]
    if problems:
        raise ScenarioError("not a switched node", problems)
    return cluster
