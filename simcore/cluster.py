"""A cluster: which device each rank is, and a fabric that says which links lie between two ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec

if TYPE_CHECKING:
    import networkx as nx


class Fabric(Protocol):
    """Links are integers. Regular fabrics answer by arithmetic and build their graph only when asked."""

    @property
    def n_ranks(self) -> int: ...

    @property
    def capacity_B_per_s(self) -> NDArray[np.float64]:
        """(links,), one direction each, at the efficiency large messages reach."""

    @property
    def latency_s(self) -> NDArray[np.float64]:
        """(links,)"""

    def routes(self, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Links from sources[i] to targets[i]: array (n, longest route), padded with -1 at the end of a row."""

    def store_routes(self, store: str, ranks: NDArray[np.int64], *, write: bool) -> NDArray[np.int64]:
        """Links between each rank and a store, the store's own port among them; shape and padding as in `routes`."""

    def node_of(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Host of each rank; ranks of one host talk over the intra-node link."""

    def intra_ports(self, ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Links out of and into each rank inside its host."""

    def net_ports(self, ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Links out of each rank to the network and from it."""

    def core_links(self, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Links between two ranks beyond their own ports: (n, most), -1 where there is none."""

    def distance(self, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) equal numbers for ways of equal latency and rate."""

    def ring(self, members: NDArray[np.int64]) -> tuple[float, float]:
        """What a ring over the network has: bytes per second of its slowest port or link, latency of its slowest step."""

    def link_name(self, link: int) -> str:
        """A name for messages and pictures: `gpu 12 -> nvswitch`."""

    def graph(self) -> "nx.DiGraph[Any]":
        """Devices, switches and stores as nodes, links as edges with `link`, `capacity_B_per_s` and `latency_s`."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Devices and the fabric between them. `device_index[rank]` points into `devices`."""

    name: str
    devices: tuple[DeviceSpec, ...]
    device_index: NDArray[np.int64]
    fabric: Fabric
    intra: tuple[LinkSpec | None, ...]  # link inside a node, by position in `devices`
    inter: tuple[LinkSpec | None, ...]  # link of a rank to the network, by position in `devices`
    stores: Mapping[str, StoreSpec] = field(default_factory=dict)
    cores: int | None = (
        None  # ranks are processes of one host that share so many cores; None: each has its device for itself
    )

    @property
    def n_ranks(self) -> int:
        return len(self.device_index)

    @property
    def capacity(self) -> NDArray[np.float64]:
        """(links,) what the fabric carries, and after it, where ranks share cores, seconds of computing per second."""
        fabric = self.fabric.capacity_B_per_s
        return fabric if self.cores is None else np.append(fabric, float(self.cores))

    def device(self, rank: int) -> DeviceSpec:
        return self.devices[int(self.device_index[rank])]
