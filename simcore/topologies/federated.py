"""Clients that learn together: each at home behind its own access link, a server, and regions that lie apart.

Clients are ranks 0 to n - 1 in the order in which they are listed, the server is the last rank. All flows of a client, with the
server and with other clients, share its access link, up and down apart.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from costmodels.catalog import Catalog
from costmodels.errors import Problem
from costmodels.specs import LinkSpec
from simcore.cluster import Cluster
from simcore.errors import ScenarioError
from simcore.network.access_fabric import AccessFabric
from simcore.network.hosts import Lookup
from simcore.validation import suggestion

HOME = "home"


class Site(BaseModel):
    """Where a computer is, and how it is connected."""

    model_config = ConfigDict(extra="forbid")

    device: str = Field(description="Catalogue name of the device.")
    down: str = Field(description="Catalogue name of the link from the internet.")
    up: str | None = Field(None, description="Catalogue name of the link to the internet; default: as `down`.")
    region: str = Field(HOME, description="Where it is; what lies in one region is near.")


class Clients(Site):
    """Equal clients."""

    count: int = Field(1, ge=1, le=100_000, description="How many of them.")


class Distance(BaseModel):
    """What lies between two regions, both ways."""

    model_config = ConfigDict(extra="forbid")

    regions: tuple[str, str] = Field(description="The two of them.")
    link: str = Field(description="Catalogue name of what one host gets between them: latency and rate.")


class Params(BaseModel):
    """Clients, their server, and the distances between regions."""

    model_config = ConfigDict(extra="forbid")

    clients: list[Clients] = Field(min_length=1, max_length=256, description="Kinds of clients, in rank order.")
    server: Site = Field(description="The server; it becomes the last rank.")
    distances: list[Distance] = Field(
        default_factory=list,
        max_length=1024,
        description="Links between pairs of regions that `distance` does not suit.",
    )
    cores: int | None = Field(
        None,
        ge=1,
        description="Everybody is a process of one machine and they share so many of its cores; default: each has its own.",
    )
    distance: str = Field("wan_continent", description="Catalogue name of the link between all other regions.")


def build(params: Params, catalog: Catalog) -> Cluster:
    """The cluster. Raises `ScenarioError` for names that the catalogue lacks, and for distances between regions where nobody is."""
    problems: list[Problem] = []
    look = Lookup(catalog, problems)
    sites: list[Site] = [*params.clients, params.server]
    at = [*(f"cluster.clients.{i}" for i in range(len(params.clients))), "cluster.server"]
    devices = [look.device(s.device, f"{a}.device") for s, a in zip(sites, at, strict=True)]
    down = [look.link(s.down, f"{a}.down") for s, a in zip(sites, at, strict=True)]
    up = [look.link(s.up or s.down, f"{a}.up") for s, a in zip(sites, at, strict=True)]
    regions = list(dict.fromkeys(s.region for s in sites))
    between = _between(params, regions, look, problems)
    if problems:
        raise ScenarioError("the cluster cannot be built", problems)
    kind = np.repeat(np.arange(len(sites)), [*(c.count for c in params.clients), 1])
    fabric = AccessFabric(
        kind=kind,
        up=[x for x in up if x is not None],
        down=[x for x in down if x is not None],
        region=[regions.index(s.region) for s in sites],
        regions=regions,
        between=between,
    )
    return Cluster(
        name="federated",
        devices=tuple(d for d in devices if d is not None),
        device_index=kind,
        fabric=fabric,
        intra=(None,) * len(sites),
        inter=tuple(up),
        cores=params.cores,
    )


def _between(params: Params, regions: list[str], look: Lookup, problems: list[Problem]) -> list[list[LinkSpec | None]]:
    """Links from region to region, None within one."""
    usual = look.link(params.distance, "cluster.distance")
    table = [[None if a == b else usual for b in regions] for a in regions]
    for i, distance in enumerate(params.distances):
        link = look.link(distance.link, f"cluster.distances.{i}.link")
        unknown = [r for r in distance.regions if r not in regions]
        for r in unknown:
            problems.append(
                Problem(f"cluster.distances.{i}.regions", repr(r), ", ".join(regions), suggestion(r, regions))
            )
        if len(set(distance.regions)) < 2:
            problems.append(Problem(f"cluster.distances.{i}.regions", repr(distance.regions), "two different regions"))
        elif not unknown:
            a, b = (regions.index(r) for r in distance.regions)
            table[a][b] = table[b][a] = link
    return table
