"""From pools of hosts to a cluster: what single_node, nvswitch_node, rail_optimised and fat_tree have in common."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from costmodels.catalog import Catalog
from costmodels.errors import DataError, Problem
from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec
from simcore.cluster import Cluster
from simcore.errors import ScenarioError
from simcore.network.fabric import Floats, HostFabric, Ints, Leaves
from simcore.network.pools import Hosts, Pool

T = TypeVar("T")
MOST_RANKS = 1_000_000


def build_hosts(
    name: str,
    params: Hosts,
    catalog: Catalog,
    *,
    network: bool,
    leaves: Callable[[Ints, Ints, Floats], Leaves | None] | None = None,
) -> Cluster:
    """The cluster of `params.all_pools()`; `leaves(node, local, net_B_per_s)` hangs the network ports on switches."""
    pools = params.all_pools()
    total = sum(p.nodes * p.devices_per_node for p in pools)
    if total > MOST_RANKS:
        raise ScenarioError(
            "a cluster too large", [Problem("cluster.nodes", f"{total} ranks", f"at most {MOST_RANKS}")]
        )
    devices, intra, inter, stores = _specs(params, pools, catalog, network=network)
    counts = np.array([p.nodes * p.devices_per_node for p in pools])
    kind = np.repeat(np.arange(len(pools)), counts)
    local = np.concatenate([np.tile(np.arange(p.devices_per_node), p.nodes) for p in pools])
    node = np.cumsum(local == 0) - 1
    rates = np.array([link.B_per_s * link.efficiency if link else 0.0 for link in inter])[kind]
    fabric = HostFabric(
        node=node,
        local=local,
        intra=intra,
        out=inter,
        into=inter,
        kind=kind,
        leaves=leaves(node, local, rates) if leaves is not None else None,
        stores=stores,
    )
    return Cluster(
        name=name,
        devices=tuple(devices),
        device_index=kind,
        fabric=fabric,
        intra=tuple(intra),
        inter=tuple(inter),
        stores=stores,
    )


def _specs(
    params: Hosts, pools: Sequence[Pool], catalog: Catalog, *, network: bool
) -> tuple[list[DeviceSpec], list[LinkSpec | None], list[LinkSpec | None], dict[str, StoreSpec]]:
    problems: list[Problem] = []
    look = Lookup(catalog, problems)
    devices: list[DeviceSpec] = []
    intra: list[LinkSpec | None] = []
    inter: list[LinkSpec | None] = []
    for i, pool in enumerate(pools):
        at = f"cluster.pools.{i}" if params.pools is not None else "cluster"
        device = look.device(pool.device, f"{at}.device")
        near = (
            look.link(pool.intra, f"{at}.intra") if pool.intra else _own_link(device, pool.devices_per_node, look, at)
        )
        far = look.link(pool.inter, f"{at}.inter") if pool.inter else None
        if network and far is None and pool.inter is None and sum(p.nodes for p in pools) > 1:
            problems.append(
                Problem(
                    f"{at}.inter",
                    "nothing",
                    "the link between hosts, e.g. infiniband_ndr",
                    "More than one host needs one.",
                )
            )
        if device is not None:
            devices.append(device)
        intra.append(near)
        inter.append(far)
    stores = {}
    for i, name in enumerate(params.stores):
        store = look.store(name, f"cluster.stores.{i}")
        if store is not None:
            stores[name] = store
    if problems:
        raise ScenarioError("the cluster cannot be built", problems)
    return devices, intra, inter, stores


def _own_link(device: DeviceSpec | None, together: int, look: "Lookup", at: str) -> LinkSpec | None:
    """What devices of a host talk over by default: their own link if it joins them all (a bridge joins two), else the host's."""
    host = (device.host_link if device else None) or "loopback"
    peer = look.link(device.peer_link, f"{at}.intra") if device and device.peer_link else None
    if peer is None or (peer.joins is not None and together > peer.joins):
        return look.link(host, f"{at}.intra")
    return peer


class Lookup:
    """Catalogue entries by name, with what is wrong collected instead of raised."""

    def __init__(self, catalog: Catalog, problems: list[Problem]) -> None:
        self.catalog, self.problems = catalog, problems

    def device(self, name: str, at: str) -> DeviceSpec | None:
        return self._take(lambda: self.catalog.device(name), at)

    def link(self, name: str, at: str) -> LinkSpec | None:
        return self._take(lambda: self.catalog.link(name), at)

    def store(self, name: str, at: str) -> StoreSpec | None:
        return self._take(lambda: self.catalog.store(name), at)

    def _take(self, find: Callable[[], T], at: str) -> T | None:
        try:
            return find()
        except DataError as error:
            named = ("device", "link", "store")  # any other field is one of the entry's own file
            self.problems += [
                Problem(
                    at,
                    p.given if p.field in named else f"{p.given} for {p.field} ({error.summary})",
                    p.allowed,
                    p.advice,
                )
                for p in error.problems
            ]
            return None
