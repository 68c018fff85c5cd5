"""Clients around a hub (the internet): every client has its own access link, up and down apart. Federated learning lives here."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from costmodels.catalog import Catalog
from costmodels.errors import Problem
from simcore.cluster import Cluster
from simcore.errors import ScenarioError
from simcore.network.fabric import HostFabric
from simcore.network.hosts import Lookup


class Clients(BaseModel):
    """Equal clients."""

    model_config = ConfigDict(extra="forbid")

    device: str = Field(description="Catalogue name of the clients' device.")
    count: int = Field(1, ge=1, le=100_000, description="How many of them.")
    down: str = Field(description="Catalogue name of the link from the hub.")
    up: str | None = Field(None, description="Catalogue name of the link to the hub; default: as `down`.")


class Params(BaseModel):
    """A hub that holds nobody back, and clients."""

    model_config = ConfigDict(extra="forbid")

    clients: list[Clients] = Field(min_length=1, max_length=256, description="Kinds of clients, in rank order.")
    stores: list[str] = Field(default_factory=list, max_length=16, description="Catalogue names of stores at the hub.")


def build(params: Params, catalog: Catalog) -> Cluster:
    """The cluster; every client is a host with one rank."""
    problems: list[Problem] = []
    look = Lookup(catalog, problems)
    devices = [look.device(c.device, f"cluster.clients.{i}.device") for i, c in enumerate(params.clients)]
    down = [look.link(c.down, f"cluster.clients.{i}.down") for i, c in enumerate(params.clients)]
    up = [look.link(c.up or c.down, f"cluster.clients.{i}.up") for i, c in enumerate(params.clients)]
    stores = {name: look.store(name, f"cluster.stores.{i}") for i, name in enumerate(params.stores)}
    if problems:
        raise ScenarioError("the cluster cannot be built", problems)
    kind = np.repeat(np.arange(len(params.clients)), [c.count for c in params.clients])
    found = {name: store for name, store in stores.items() if store is not None}
    none = [None] * len(devices)
    node = np.arange(len(kind))
    fabric = HostFabric(node=node, local=np.zeros_like(node), intra=none, out=up, into=down, kind=kind, stores=found)
    return Cluster(
        name="star",
        devices=tuple(d for d in devices if d is not None),
        device_index=kind,
        fabric=fabric,
        intra=tuple(none),
        inter=tuple(up),
        stores=found,
    )
