"""Costs while memory and disk are faster or slower than they were when they were measured.

Copies of a state go with copies. Everything else of saves and loads in memory goes with what a small save and a small load take
there. On a disk only writing and reading go with what that takes of a file on it, and what is handed on between ranks with copies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec
from real.checkpoint.speed import Speed
from simcore.cluster import Cluster
from simcore.network.fabric import HostFabric
from simcore.scenario import Scenario
from simcore.sim import SimBackend

COPY = "d2h"
OF_SAVES = ("agree", "plan_arrays", "checksum", "system", "barrier")
"""What a rank's host does of a save; all else but copies is of loads."""
EXCHANGE = "all_to_all"


@dataclass(frozen=True, slots=True)
class Slower:
    """How many times as long copies, saves and loads take as when costs were measured; where they are not `in_memory`, the disk's
    part of them."""

    copies: float = 1.0
    saves: float = 1.0
    loads: float = 1.0
    in_memory: bool = True

    @classmethod
    def than(cls, usual: Speed, now: Speed) -> Self:
        """What is not known is as it was."""
        then, found = usual.known(), now.known()
        in_memory = now.disk_write_B_per_s is None
        names = ("copy", *(("memory_save", "memory_load") if in_memory else ("disk_write", "disk_read")))
        rates = [(then.get(f"{name}_B_per_s"), found.get(f"{name}_B_per_s")) for name in names]
        return cls(*(before / here if before and here else 1.0 for before, here in rates), in_memory=in_memory)

    def of_host(self, *, saves: bool) -> float:
        """How many times as long everything takes that is neither copying nor the disk's."""
        return 1.0 if not self.in_memory else self.saves if saves else self.loads


def simulator(scenario: Scenario, slower: Slower) -> SimBackend:
    """The simulator with such a memory."""
    found = SimBackend.from_scenario(scenario)
    return found.on(at_speed(found.cluster, slower))


def at_speed(cluster: Cluster, slower: Slower) -> Cluster:
    """The same with other costs of what is done in memory, written to the disk and read from it."""
    stores = {name: _store(store, slower) for name, store in cluster.stores.items()}
    fabric = cluster.fabric
    return replace(
        cluster,
        devices=tuple(_device(device, slower) for device in cluster.devices),
        intra=tuple(
            None if link is None else _link(link, slower.loads if slower.in_memory else slower.copies)
            for link in cluster.intra
        ),
        stores=stores,
        fabric=replace(fabric, stores=stores) if isinstance(fabric, HostFabric) else fabric,
    )


def _device(device: DeviceSpec, slower: Slower) -> DeviceSpec:
    phases: Any = device.measured.get("checkpoint")
    if phases is None:
        return device
    scaled = {name: _phase(own, name, slower) for name, own in phases.items()}
    return replace(device, measured={**device.measured, "checkpoint": scaled})


def _phase(own: Mapping[str, float], name: str, slower: Slower) -> Mapping[str, float]:
    if name == COPY:
        return {**own, "s_per_B": own["s_per_B"] * slower.copies}
    factor = slower.of_host(saves=name in OF_SAVES)
    return {key: seconds * factor for key, seconds in own.items()}


def _link(link: LinkSpec, slower: float) -> LinkSpec:
    tables: Any = link.measured.get(EXCHANGE, {})
    scaled = {ranks: [[nbytes, s * slower] for nbytes, s in points] for ranks, points in tables.items()}
    return replace(link, measured={**link.measured, EXCHANGE: scaled} if scaled else link.measured)


def _store(store: StoreSpec, slower: Slower) -> StoreSpec:
    """The machine's store in memory, or the one on its disk, is as fast as it is beside the runs."""
    if store.shared or (store.kind == "memory") != slower.in_memory:
        return store
    return replace(
        store,
        write_B_per_s=store.write_B_per_s / slower.saves,
        stream_write_B_per_s=store.stream_write_B_per_s / slower.saves,
        read_B_per_s=store.read_B_per_s / slower.loads,
        stream_read_B_per_s=store.stream_read_B_per_s / slower.loads,
        commit_s=store.commit_s * slower.of_host(saves=True),
        open_s=store.open_s * slower.of_host(saves=False),
    )
