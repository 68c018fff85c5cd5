"""Rails: device i of every host in a pod hangs on leaf i of that pod, so that equal devices meet one switch away.

A collective that runs inside hosts first and between equal devices then (as NCCL's rings and trees do) stays on its rail.
"""

import numpy as np
from pydantic import Field

from costmodels.catalog import Catalog
from simcore.cluster import Cluster
from simcore.network.fabric import Floats, Ints, Leaves
from simcore.network.hosts import build_hosts
from simcore.network.pools import Hosts


class Params(Hosts):
    """Hosts on rails."""

    pod_nodes: int = Field(256, ge=1, le=100_000, description="Hosts whose rails meet the same leaves.")
    oversubscription: float = Field(1.0, ge=1.0, le=64.0, description="Port bandwidth below a leaf over that above it.")


def build(params: Params, catalog: Catalog) -> Cluster:
    """The cluster. A core without oversubscription routes adaptively and holds nobody back."""

    def leaves(node: Ints, local: Ints, net_B_per_s: Floats) -> Leaves | None:
        if params.oversubscription == 1.0:
            return None
        rails = int(local.max()) + 1
        of = (node // params.pod_nodes) * rails + local
        below = np.bincount(of, net_B_per_s)
        return Leaves(of, 1, below / params.oversubscription)

    return build_hosts("rail_optimised", params, catalog, network=True, leaves=leaves)
