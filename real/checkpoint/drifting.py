"""Costs while memory and disk are faster or slower than they were when they were measured.

Copies of a state go with copies; what is handed on between ranks is put down as if it all were copies. While copies were up to
1.5 times as fast, nothing else changed by more than 15 %: checksums of what is saved, reading and writing files in memory,
verifying, planning, meeting. Writing to a disk and reading from it go with what that takes of a file on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec
from real.checkpoint.steady import Speed
from simcore.cluster import Cluster
from simcore.network.fabric import HostFabric
from simcore.scenario import Scenario
from simcore.sim import SimBackend

COPY = "d2h"
EXCHANGE = "all_to_all"


@dataclass(frozen=True, slots=True)
class Slower:
    """How many times as long copies, writing to the disk and reading from it take as when costs were measured."""

    copies: float = 1.0
    writes: float = 1.0
    reads: float = 1.0

    @classmethod
    def than(cls, usual: Speed, now: Speed) -> Self:
        """The disk is as it was where that is not known."""
        then, found = usual.known(), now.known()
        return cls(
            *(then[f.name] / found[f.name] if f.name in then and f.name in found else 1.0 for f in fields(Speed))
        )


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
        intra=tuple(None if link is None else _link(link, slower.copies) for link in cluster.intra),
        stores=stores,
        fabric=replace(fabric, stores=stores) if isinstance(fabric, HostFabric) else fabric,
    )


def _device(device: DeviceSpec, slower: Slower) -> DeviceSpec:
    phases: Any = device.measured.get("checkpoint")
    if phases is None:
        return device
    scaled = {name: _phase(own, slower.copies if name == COPY else 1.0) for name, own in phases.items()}
    return replace(device, measured={**device.measured, "checkpoint": scaled})


def _phase(own: Mapping[str, float], slower: float) -> Mapping[str, float]:
    return {**own, "s_per_B": own["s_per_B"] * slower}


def _link(link: LinkSpec, slower: float) -> LinkSpec:
    tables: Any = link.measured.get(EXCHANGE, {})
    scaled = {ranks: [[nbytes, s * slower] for nbytes, s in points] for ranks, points in tables.items()}
    return replace(link, measured={**link.measured, EXCHANGE: scaled} if scaled else link.measured)


def _store(store: StoreSpec, slower: Slower) -> StoreSpec:
    """A disk of the machine is written and read as fast as it is beside the runs."""
    if store.kind == "memory" or store.shared:
        return store
    return replace(
        store,
        write_B_per_s=store.write_B_per_s / slower.writes,
        stream_write_B_per_s=store.stream_write_B_per_s / slower.writes,
        read_B_per_s=store.read_B_per_s / slower.reads,
        stream_read_B_per_s=store.stream_read_B_per_s / slower.reads,
    )
