"""Routes by arithmetic are ways through the graph, and every topology keeps the laws of the engine with the real cost model."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.catalog import Catalog
from simcore.cluster import Cluster
from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.plan import Collective, Group, Plan, Task, Transfer, Write
from simcore.topologies import (
    fat_tree,
    federated,
    nvswitch_node,
    rail_optimised,
    random_regular,
    ring,
    single_node,
    star,
)
from tests.laws.plans import work

CATALOG = Catalog()
HOSTS = {"device": "a100_sxm_80", "devices_per_node": 4, "intra": "nvlink3", "inter": "infiniband_hdr"}


def world(kind: str) -> Cluster:
    if kind == "single_node":
        return single_node.build(single_node.Params(device="v100_sxm2_16", devices_per_node=8), CATALOG)
    if kind == "nvswitch_node":
        return nvswitch_node.build(nvswitch_node.Params(device="h100_sxm", stores=["nvme_gen4"]), CATALOG)
    if kind == "rail_optimised":
        params = rail_optimised.Params(**HOSTS, nodes=6, pod_nodes=2, oversubscription=2.0, stores=["nfs"])
        return rail_optimised.build(params, CATALOG)
    if kind == "fat_tree":
        return fat_tree.build(fat_tree.Params(**HOSTS, nodes=6, leaf_nodes=2, oversubscription=4.0), CATALOG)
    if kind == "fat_tree ecmp":
        return fat_tree.build(fat_tree.Params(**HOSTS, nodes=6, leaf_nodes=2, routing="ecmp", spines=3), CATALOG)
    if kind == "star":
        clients = [
            {"device": "phone", "count": 3, "down": "5g", "up": "5g_up"},
            {"device": "laptop_cpu", "count": 2, "down": "wifi6"},
        ]
        return star.build(star.Params(clients=clients, stores=["object_store"]), CATALOG)
    if kind == "federated":
        kinds = [
            {"device": "phone", "count": 3, "down": "home", "up": "home_up"},
            {"device": "laptop_cpu", "count": 2, "down": "wifi6", "region": "elsewhere"},
        ]
        given = {"clients": kinds, "server": {"device": "server_cpu", "down": "ethernet_10g"}}
        return federated.build(federated.Params.model_validate(given), CATALOG)
    if kind == "ring":
        return ring.build(ring.Params(device="jetson_orin", link="ethernet_10g", nodes=7, stores=["nfs"]), CATALOG)
    params = random_regular.Params(device="laptop_cpu", link="wifi6", nodes=12, degree=3, seed=5)
    return random_regular.build(params, CATALOG)


KINDS = (
    "single_node",
    "nvswitch_node",
    "rail_optimised",
    "fat_tree",
    "fat_tree ecmp",
    "star",
    "federated",
    "ring",
    "random_regular",
)


@pytest.mark.parametrize("kind", KINDS)
def test_routes_are_ways_through_the_graph(kind: str) -> None:
    cluster = world(kind)
    fabric, n = cluster.fabric, cluster.n_ranks
    graph = fabric.graph()
    ends = {data["link"]: (a, b) for a, b, data in graph.edges(data=True)}
    pairs = np.array([(a, b) for a in range(n) for b in range(n) if a != b])
    for (a, b), route in zip(pairs, fabric.routes(pairs[:, 0], pairs[:, 1]), strict=True):
        way = [ends[int(link)] for link in route if link >= 0]
        assert way, (a, b)
        assert all(before[1] == after[0] for before, after in pairwise(way))
        assert (way[0][0], way[-1][1]) == (f"rank {a}", f"rank {b}")
    for a, b, data in graph.edges(data=True):
        assert data["capacity_B_per_s"] == fabric.capacity_B_per_s[data["link"]] > 0
        assert fabric.link_name(data["link"]), (a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_reaches_itself_without_a_link_and_every_other_by_its_own(kind: str) -> None:
    fabric = world(kind).fabric
    ranks = np.arange(world(kind).n_ranks)
    assert (fabric.routes(ranks, ranks) == -1).all()
    assert len({fabric.link_name(i) for i in range(len(fabric.capacity_B_per_s))}) == len(fabric.capacity_B_per_s)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_grouping_is_exact_on_every_topology(kind: str, seed: int) -> None:
    rng, cluster = np.random.default_rng(seed), world(kind)
    n = cluster.n_ranks
    order = rng.permutation(n).tolist() if rng.random() < 0.5 else list(range(n))
    groups = {"all": Group.listed(range(n), "dp"), "shuffled": Group.listed(order, "dp")}
    tasks = [Task("c", work("all", 1))]
    for i, op in enumerate(rng.choice(["all_reduce", "all_gather", "all_to_all", "send", "write"], size=4)):
        size = int(rng.integers(1, 10**7))
        if op == "send":
            made = Transfer(source="all", target="shuffled", nbytes=size, stream=f"s{i % 2}")
        elif op == "write":
            if not cluster.stores:
                continue
            made = Write(group="all", store=next(iter(cluster.stores)), nbytes=size, requests=2)
        else:
            made = Collective(kind=str(op), group="all", along=("dp",), nbytes=size, stream=f"s{i % 2}")
        tasks.append(Task(f"t{i}", made, ("c",)))
    plan = Plan(name=kind, n_ranks=n, groups=groups, tasks=tuple(tasks))
    times = []
    for expand in (False, True):
        trace = simulate(plan, cluster, CostModel(cluster), expand=expand)
        assert not trace.incomplete
        times.append({t: trace.end_s[trace.task == t].max() for t in range(len(tasks))})
    assert times[0] == pytest.approx(times[1], rel=1e-9)


def test_65536_gpus_are_built_and_routed_at_once() -> None:
    """No loop over ranks: this would take minutes."""
    cluster = rail_optimised.build(rail_optimised.Params(**{**HOSTS, "devices_per_node": 8}, nodes=8192), CATALOG)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, cluster.n_ranks, (2, 100_000))
    routes = cluster.fabric.routes(a, b)
    assert cluster.n_ranks == 65_536
    assert ((routes >= 0).sum(axis=1)[a != b] >= 2).all()
