"""What topologies refuse, and networks from files."""

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from pydantic import ValidationError

from costmodels.catalog import Catalog
from simcore.errors import ScenarioError
from simcore.topologies import graph_file, nvswitch_node, rail_optimised, random_regular, single_node

CATALOG = Catalog()


def test_pools_count_through_in_order() -> None:
    pools = [
        {"device": "v100_sxm2_16", "nodes": 1, "devices_per_node": 2, "inter": "ethernet_10g"},
        {"device": "t4", "nodes": 2, "devices_per_node": 3, "inter": "ethernet_10g"},
    ]
    cluster = single_node.build(single_node.Params(pools=pools), CATALOG)
    assert [d.name for d in map(cluster.device, range(8))] == ["v100_sxm2_16"] * 2 + ["t4"] * 6
    assert cluster.fabric.node_of(np.arange(8)).tolist() == [0, 0, 1, 1, 1, 2, 2, 2]


def test_either_one_pool_or_several() -> None:
    with pytest.raises(ValidationError, match="either `device`"):
        single_node.Params(device="t4", pools=[{"device": "t4"}])
    with pytest.raises(ValidationError, match="either `device`"):
        single_node.Params()


def test_all_unknown_names_are_said_at_once() -> None:
    with pytest.raises(ScenarioError) as error:
        rail_optimised.build(rail_optimised.Params(device="h1000", nodes=2, intra="nvlink9", stores=["tape"]), CATALOG)
    assert {p.field for p in error.value.problems} >= {
        "cluster.device",
        "cluster.intra",
        "cluster.stores.0",
        "cluster.inter",
    }


def test_a_switched_node_needs_a_switch() -> None:
    with pytest.raises(ScenarioError, match="a link with a switch"):
        nvswitch_node.build(nvswitch_node.Params(device="v100_sxm2_16"), CATALOG)


@pytest.mark.parametrize(("nodes", "degree"), [(5, 3), (4, 4), (6, 1)])
def test_overlays_that_cannot_be(nodes: int, degree: int) -> None:
    params = random_regular.Params(device="laptop_cpu", link="wifi6", nodes=nodes, degree=degree)
    with pytest.raises(ScenarioError, match=r"cluster\.degree"):
        random_regular.build(params, CATALOG)


def drawn() -> "nx.Graph[str]":
    graph: nx.Graph[str] = nx.Graph()
    graph.add_node("a", device="t4")
    graph.add_node("switch")
    graph.add_node("b", device="v100_sxm2_16", store="nfs")
    graph.add_edge("a", "switch", link="ethernet_10g")
    graph.add_edge("switch", "b", B_per_s="25 Gbit/s", latency_s="5 us")
    return graph


@pytest.mark.parametrize("suffix", [".json", ".graphml"])
def test_a_network_from_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(nx.node_link_data(drawn(), edges="links")))
    else:
        nx.write_graphml(drawn(), path)
    cluster = graph_file.build(graph_file.Params(file=str(path)), CATALOG)
    assert [d.name for d in map(cluster.device, range(2))] == ["t4", "v100_sxm2_16"]
    route = cluster.fabric.routes(np.array([0]), np.array([1]))[0]
    assert [cluster.fabric.link_name(int(link)) for link in route] == ["a -> switch", "switch -> b"]
    assert cluster.fabric.capacity_B_per_s[route[1]] == pytest.approx(25e9 / 8)
    there = cluster.fabric.store_routes("nfs", np.array([0]), write=True)[0]
    assert cluster.fabric.link_name(int(there[-1])) == "store nfs write"


def test_everything_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    graph = drawn()
    graph.nodes["a"]["device"] = "t5"
    graph.edges["a", "switch"]["link"] = "string"
    graph.edges["switch", "b"]["B_per_s"] = "fast"
    path = tmp_path / "net.json"
    path.write_text(json.dumps(nx.node_link_data(graph, edges="links")))
    with pytest.raises(ScenarioError) as error:
        graph_file.build(graph_file.Params(file=str(path)), CATALOG)
    assert {p.field for p in error.value.problems} == {"nodes.a.device", "edges.a-switch", "edges.switch-b.B_per_s"}
    path.write_text("{")
    with pytest.raises(ScenarioError, match="cannot be read"):
        graph_file.build(graph_file.Params(file=str(path)), CATALOG)
