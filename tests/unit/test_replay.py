"""Replay and engine agree; a change of one operator is what a new setting would be; memory and casts are counted once."""

from itertools import product

import numpy as np
import pytest

from costmodels.catalog import Catalog
from costmodels.precision import PRECISIONS, casts, flows, of_device
from costmodels.precision_kernels import cast
from simcore.cluster import Cluster
from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.plan import Compute
from simcore.qsync.local import INDEX, LocalGraph
from simcore.qsync.peak import memory_B
from simcore.qsync.plans import device_classes, precision_plan
from simcore.qsync.replay import replayer
from simcore.qsync.settings import changed, setting
from simcore.qsync.tables import bucket_names, local_graph
from simcore.topologies import fat_tree
from simcore.workloads.operator_training import OperatorTraining, Params, build


def cluster_of(inter: str) -> Cluster:
    pools = [
        {"device": d, "nodes": 1, "devices_per_node": 2, "intra": i, "inter": inter}
        for d, i in (("v100_sxm2_32", "nvlink2"), ("t4", "pcie3"))
    ]
    return fat_tree.build(fat_tree.Params.model_validate({"pools": pools}), Catalog())


def workload_of(model: str, tmp_path) -> OperatorTraining:
    return build(Params(model=model, batch=4), np.random.default_rng(0), tmp_path)


def tables_of(workload: OperatorTraining, cluster: Cluster, batches: tuple[int, int]) -> dict[str, LocalGraph]:
    cost, buckets = CostModel(cluster), bucket_names(workload.graph, 2.0**20, 25 * 2.0**20)
    return {
        c.name: local_graph(workload.graph, c.device, b, cost, buckets=buckets)
        for c, b in zip(device_classes(cluster), batches, strict=True)
    }


def drawn(local: LocalGraph, rng: np.random.Generator) -> dict[str, str]:
    names = [local.graph.operators[i].name for i in local.adjustable]
    return {
        n: PRECISIONS[rng.choice(np.flatnonzero(local.allowed[i]))]
        for n, i in zip(names, local.adjustable, strict=True)
    }


@pytest.mark.parametrize(
    ("model", "inter"),
    list(product(("small_resnet", "small_transformer", "resnet50"), ("ethernet_100g", "ethernet_1g"))),
)
def test_replay_takes_as_long_as_the_engine(model: str, inter: str, tmp_path) -> None:
    cluster, rng = cluster_of(inter), np.random.default_rng(1)
    workload, cost = workload_of(model, tmp_path), CostModel(cluster)
    for batches in ((4, 4), (24, 8)):
        tables = tables_of(workload, cluster, batches)
        chosen = {name: drawn(local, rng) for name, local in tables.items()}
        replay = replayer(list(tables.values()), cluster, cost)
        found = replay.replay([setting(local, chosen[name]) for name, local in tables.items()])
        plan = precision_plan(workload, device_classes(cluster), tables, chosen, decisions={})
        trace = simulate(plan, cluster, cost)
        assert found.iteration_s == pytest.approx(trace.makespan_s, rel=0.005)
        for name, local in tables.items():
            lane = next(i for i, x in enumerate(trace.lanes) if x.device == name)
            assert sum(trace.memory_B[lane].values()) == pytest.approx(
                memory_B(local, setting(local, chosen[name])), rel=1e-3
            )


@pytest.mark.parametrize("model", ["small_resnet", "small_transformer"])
def test_a_change_is_what_a_new_setting_would_be_and_leaves_the_old_one(model: str, tmp_path) -> None:
    rng = np.random.default_rng(2)
    local = tables_of(workload_of(model, tmp_path), cluster_of("ethernet_100g"), (4, 4))["t4"]
    chosen = drawn(local, rng)
    now = setting(local, chosen)
    for i in local.adjustable.tolist():
        precision = int(rng.choice(np.flatnonzero(local.allowed[i])))
        before = now.device_s.copy()
        after = changed(local, now, i, precision)
        assert (now.device_s == before).all()
        chosen[local.graph.operators[i].name] = PRECISIONS[precision]
        wanted = setting(local, chosen)
        assert (after.computes == wanted.computes).all() and (after.output == wanted.output).all()
        np.testing.assert_allclose(after.device_s, wanted.device_s)
        np.testing.assert_allclose(after.host_s, wanted.host_s)
        now = after


@pytest.mark.parametrize("model", ["small_resnet", "small_transformer"])
def test_precisions_and_casts_are_those_of_the_rules(model: str, tmp_path) -> None:
    cluster = cluster_of("ethernet_100g")
    workload = workload_of(model, tmp_path)
    local = tables_of(workload, cluster, (4, 4))["t4"]
    cost, device = CostModel(cluster), local.device
    rules = flows(local.graph, chosen := drawn(local, np.random.default_rng(3)), of_device(device))
    found = setting(local, chosen)
    assert [PRECISIONS[c] for c in found.computes] == [rules[o.name].computes for o in local.graph]
    assert [PRECISIONS[c] for c in found.output] == [rules[o.name].output for o in local.graph]
    run = [k for change in casts(local.graph, rules, 4) for k in cast(change)]
    plan = precision_plan(
        workload,
        device_classes(cluster),
        {"t4": local, "v100_sxm2_32": local},
        dict.fromkeys(("t4", "v100_sxm2_32"), chosen),
        decisions={},
    )
    charged = [
        k
        for t in plan.tasks
        if isinstance(t.op, Compute) and t.op.group == "t4"
        for k in t.op.kernels
        if k.name in ("cast", "amax")
    ]
    assert sorted(map(repr, charged)) == sorted(map(repr, run))
    seconds = sum(
        cost.compute(t.op, device).seconds
        for t in plan.tasks
        if isinstance(t.op, Compute) and t.op.group == "t4" and t.op.stream == "compute"
    )
    assert found.device_s.sum() + local.optimizer_s == pytest.approx(seconds)


def test_fewer_bits_keep_fewer_bytes(tmp_path) -> None:
    local = tables_of(workload_of("small_transformer", tmp_path), cluster_of("ethernet_100g"), (32, 32))["t4"]
    sizes = []
    for precision in ("float32", "float16"):
        names = [local.graph.operators[i].name for i in local.adjustable if local.allowed[i, INDEX[precision]]]
        sizes.append(memory_B(local, setting(local, dict.fromkeys(names, precision))))
    assert sizes[1] < sizes[0]
