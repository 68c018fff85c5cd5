"""A network that the user draws: networkx' node-link JSON or GraphML.

Nodes with a `device` are ranks, in the order of the file; other nodes are switches. Every edge names its `link` from the catalogue,
or has `B_per_s` and `latency_s`. Edges of an undirected graph go both ways. A node may name a `store`.
"""

import json
from pathlib import Path
from typing import Any

import networkx as nx
from pydantic import BaseModel, ConfigDict, Field

from costmodels.catalog import Catalog
from costmodels.errors import DataError, Problem
from costmodels.specs import DeviceSpec, LinkSpec, StoreSpec
from costmodels.units import parse
from simcore.cluster import Cluster
from simcore.errors import ScenarioError
from simcore.network.graphs import graph_cluster
from simcore.network.hosts import Lookup


class Params(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")

    file: str = Field(
        min_length=1, description="Path of a .json (node-link) or .graphml file, relative to the current directory."
    )


def build(params: Params, catalog: Catalog) -> Cluster:
    """The cluster. Raises `ScenarioError` with everything that is wrong with the file."""
    graph = _read(Path(params.file))
    problems: list[Problem] = []
    look = Lookup(catalog, problems)
    ranks: list[Any] = []
    devices: list[DeviceSpec] = []
    stores: dict[str, tuple[StoreSpec, Any]] = {}
    for node, fields in graph.nodes(data=True):
        if "device" in fields:
            device = look.device(str(fields["device"]), f"nodes.{node}.device")
            if device is not None:
                ranks.append(node)
                devices.append(device)
        if "store" in fields:
            store = look.store(str(fields["store"]), f"nodes.{node}.store")
            if store is not None:
                stores[str(fields["store"])] = (store, node)
    links = {(a, b): _link(fields, f"edges.{a}-{b}", look) for a, b, fields in graph.edges(data=True)}
    if not ranks and not problems:
        problems.append(
            Problem("cluster.file", f"{len(graph)} nodes without a device", "at least one node with `device`")
        )
    if not problems and not nx.is_strongly_connected(graph.to_directed()):
        problems.append(Problem("cluster.file", "a network in pieces", "a way from every node to every other"))
    if problems:
        raise ScenarioError(f"{params.file} is not a network", problems)
    return graph_cluster("graph_file", graph, ranks, devices, {k: v for k, v in links.items() if v is not None}, stores)


def _read(path: Path) -> "nx.Graph[Any]":
    try:
        if path.suffix == ".graphml":
            return nx.read_graphml(path)
        return nx.node_link_graph(json.loads(path.read_text()), edges="links")
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, nx.NetworkXError) as error:
        allowed = "a readable node-link JSON or GraphML file"
        problem = Problem("cluster.file", str(path), allowed, f"{type(error).__name__}: {error}")
        raise ScenarioError("the network cannot be read", [problem]) from error


def _link(fields: dict[str, Any], at: str, look: Lookup) -> LinkSpec | None:
    if "link" in fields:
        return look.link(str(fields["link"]), at)
    try:
        rate = parse(fields.get("B_per_s"), "bytes_per_second", f"{at}.B_per_s")
        latency = parse(fields.get("latency_s", 0.0), "seconds", f"{at}.latency_s")
    except DataError as error:
        look.problems += error.problems
        return None
    if rate <= 0:
        look.problems.append(Problem(f"{at}.B_per_s", str(rate), "a positive rate"))
    return LinkSpec(name=at, title=at, kind="edge", B_per_s=rate, latency_s=latency, efficiency=1.0)
