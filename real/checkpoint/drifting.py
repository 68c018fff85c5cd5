"""Costs while memory is faster or slower than it was when they were measured.

Where copies took 1.4 times as long, so did copies of a state, and checksums, which read it; what is handed on between ranks took
1.2 to 1.3 times as long, and is put down as if it all were copies. Nothing else changed by more than a tenth: writing to and
reading from files in memory, verifying in the core's cache, planning.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from costmodels.specs import DeviceSpec, LinkSpec
from simcore.cluster import Cluster
from simcore.cost import CostModel
from simcore.scenario import Scenario
from simcore.sim import SimBackend

COPIES = ("d2h", "checksum")
EXCHANGE = "all_to_all"


def simulator(scenario: Scenario, slower: float) -> SimBackend:
    """The simulator with a memory in which copies take `slower` times as long as when costs were measured."""
    found = SimBackend.from_scenario(scenario)
    cluster = at_speed(found.cluster, slower)
    return replace(found, cluster=cluster, cost=CostModel(cluster, libraries=found.cost.libraries))


def at_speed(cluster: Cluster, slower: float) -> Cluster:
    """The same with costs of what is copies in memory."""
    return replace(
        cluster,
        devices=tuple(_device(device, slower) for device in cluster.devices),
        intra=tuple(None if link is None else _link(link, slower) for link in cluster.intra),
    )


def _device(device: DeviceSpec, slower: float) -> DeviceSpec:
    phases: Any = device.measured.get("checkpoint")
    if phases is None:
        return device
    scaled = {name: _phase(own, slower) if name in COPIES else own for name, own in phases.items()}
    return replace(device, measured={**device.measured, "checkpoint": scaled})


def _phase(own: Mapping[str, float], slower: float) -> Mapping[str, float]:
    return {**own, "s_per_B": own["s_per_B"] * slower}


def _link(link: LinkSpec, slower: float) -> LinkSpec:
    tables: Any = link.measured.get(EXCHANGE, {})
    scaled = {ranks: [[nbytes, s * slower] for nbytes, s in points] for ranks, points in tables.items()}
    return replace(link, measured={**link.measured, EXCHANGE: scaled} if scaled else link.measured)
