"""Where pools of GPUs can be: runs of equal devices of a cluster, and what it costs to compute and communicate inside one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels import Kernel
from costmodels.specs import DeviceSpec, Estimate
from simcore.cluster import Cluster
from simcore.demand import Demand
from simcore.plan import Compute, Op
from simcore.training.quick_parts import Prices

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """Consecutive ranks with the same device and the same number of ranks on each host."""

    name: str
    device: DeviceSpec
    first: int
    size: int
    per_node: int

    def sizes(self, granularity: str) -> tuple[int, ...]:
        """How many ranks a pool here can have: parts of a host that divide it, and whole hosts; or `gpu`, any number.

        A pool that is larger than a host consists of whole hosts unless `gpu` is asked for.
        """
        if granularity == "gpu":
            return tuple(range(1, self.size + 1))
        parts = [n for n in range(1, self.per_node) if self.per_node % n == 0 and n <= self.size]
        return (*parts, *range(self.per_node, self.size + 1, self.per_node))


def zones_of(cluster: Cluster) -> tuple[Zone, ...]:
    """Zones in rank order, named after their devices."""
    index = cluster.device_index
    starts = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), cluster.n_ranks]
    names: dict[str, int] = {}
    found = []
    for first, end in pairwise(starts):
        device = cluster.device(first)
        ranks = np.arange(first, end, dtype=np.int64)
        per_node = int(np.unique(cluster.fabric.node_of(ranks), return_counts=True)[1].max())
        names[device.name] = names.get(device.name, 0) + 1
        name = device.name if names[device.name] == 1 else f"{device.name}#{names[device.name]}"
        found.append(Zone(name=name, device=device, first=first, size=end - first, per_node=per_node))
    return tuple(found)


def inside(cluster: Cluster, zone: Zone) -> Cluster:
    """The cluster as a job that has the zone for itself sees it; ranks of `Shifted` prices count from the zone's first."""
    of = int(cluster.device_index[zone.first])
    return replace(
        cluster,
        name=zone.name,
        devices=(zone.device,),
        device_index=np.zeros(zone.size, dtype=np.int64),
        intra=(cluster.intra[of],),
        inter=(cluster.inter[of],),
    )


@dataclass(frozen=True)
class Shifted:
    """Prices of a cluster for ranks that count from a zone's first."""

    cost: Prices
    first: int

    def compute(self, op: Compute, device: DeviceSpec) -> Estimate:
        return self.cost.compute(op, device)

    def seconds_each(self, kernels: Sequence[Kernel], device: DeviceSpec) -> Floats:
        return self.cost.seconds_each(kernels, device)

    def signature(self, instances: Ints) -> Ints:
        return self.cost.signature(instances + self.first)

    def demands(self, op: Op, instances: Ints) -> list[Demand]:
        return self.cost.demands(op, instances + self.first)

    def link_use(self, op: Op, instances: Ints) -> tuple[Ints, Ints, Floats]:
        return self.cost.link_use(op, instances + self.first)
