"""Costs while memory is faster or slower than it was when they were measured.

Copies of a state go with copies; what is handed on between ranks is put down as if it all were copies. Reading from a file in
memory, verifying and filling in go with blocks that are read and hashed. While copies were up to 1.5 times as fast, nothing else
changed by more than 15 %: checksums of what is saved, writing, also to files in memory, planning, meeting.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec
from simcore.cluster import Cluster
from simcore.network.fabric import HostFabric
from simcore.scenario import Scenario
from simcore.sim import SimBackend

COPIES, BLOCKS = ("d2h",), ("verify", "place")
EXCHANGE = "all_to_all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """How many times as long copies, and blocks that are read and hashed, take as when costs were measured."""

    copies: float = 1.0
    blocks: float = 1.0


def simulator(scenario: Scenario, slower: Slower) -> SimBackend:
    """The simulator with such a memory."""
    found = SimBackend.from_scenario(scenario)
    return found.on(at_speed(found.cluster, slower))


def at_speed(cluster: Cluster, slower: Slower) -> Cluster:
    """The same with other costs of what is done in memory."""
    stores = {name: _store(store, slower.blocks) for name, store in cluster.stores.items()}
    fabric = cluster.fabric
    return replace(
        cluster,
        devices=tuple(_device(device, slower) for device in cluster.devices),
        intra=tuple(None if link is None else _link(link, slower.copies) for link in cluster.intra),
        stores=stores,
        fabric=replace(fabric, stores=stores) if isinstance(fabric, HostFabric) else fabric,
    )


def _device(device: DeviceSpec, slower: Slower) -> DeviceSpec:
    phases: Any = device.measured.get("checkpoint")
    if phases is None:
        return device
    factors = {**dict.fromkeys(COPIES, slower.copies), **dict.fromkeys(BLOCKS, slower.blocks)}
    scaled = {name: _phase(own, factors.get(name, 1.0)) for name, own in phases.items()}
    return replace(device, measured={**device.measured, "checkpoint": scaled})


def _phase(own: Mapping[str, float], slower: float) -> Mapping[str, float]:
    return {**own, "s_per_B": own["s_per_B"] * slower}


def _link(link: LinkSpec, slower: float) -> LinkSpec:
    tables: Any = link.measured.get(EXCHANGE, {})
    scaled = {ranks: [[nbytes, s * slower] for nbytes, s in points] for ranks, points in tables.items()}
    return replace(link, measured={**link.measured, EXCHANGE: scaled} if scaled else link.measured)


def _store(store: StoreSpec, slower: float) -> StoreSpec:
    """Files in memory are read as fast as blocks; others as fast as their disk."""
    if store.kind != "memory":
        return store
    read = {"read_B_per_s": store.read_B_per_s / slower, "stream_read_B_per_s": store.stream_read_B_per_s / slower}
    return replace(store, **read)  # type: ignore[arg-type]
