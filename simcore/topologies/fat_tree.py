"""A plain fat tree of two levels: all ports of `leaf_nodes` hosts on one leaf, every leaf on every spine."""

from typing import Literal

import numpy as np
from pydantic import Field

from costmodels.catalog import Catalog
from simcore.cluster import Cluster
from simcore.network.fabric import Floats, Ints, Leaves
from simcore.network.hosts import build_hosts
from simcore.network.pools import Hosts


class Params(Hosts):
    """Hosts below leaves below spines."""

    leaf_nodes: int = Field(16, ge=1, le=100_000, description="Hosts on one leaf.")
    oversubscription: float = Field(1.0, ge=1.0, le=64.0, description="Port bandwidth below a leaf over that above it.")
    routing: Literal["adaptive", "ecmp"] = Field(
        "adaptive", description="Spread every flow over all spines, or hash it onto one."
    )
    spines: int | None = Field(
        None, ge=1, le=4096, description="With ecmp: uplinks of a leaf; default: as many as it has ports below."
    )


def build(params: Params, catalog: Catalog) -> Cluster:
    """The cluster. Adaptive routing makes one trunk of a leaf's uplinks, which only oversubscription can fill."""

    def leaves(node: Ints, _local: Ints, net_B_per_s: Floats) -> Leaves | None:
        if params.routing == "adaptive" and params.oversubscription == 1.0:
            return None
        of = node // params.leaf_nodes
        below = np.bincount(of, net_B_per_s) / params.oversubscription
        if params.routing == "adaptive":
            return Leaves(of, 1, below)
        uplinks = params.spines or int(np.bincount(of).max())
        return Leaves(of, uplinks, below / uplinks)

    return build_hosts("fat_tree", params, catalog, network=True, leaves=leaves)
