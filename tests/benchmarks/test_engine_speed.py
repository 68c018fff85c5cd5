"""How fast the engine is, beside plain SimPy in the same run. `make benchmark` prints the table; nothing here has a time limit."""

import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from costmodels.catalog import Catalog
from costmodels.ring import ring_steps
from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.plan import Group, Op, Plan, Task, Transfer
from simcore.scenario import load
from simcore.topologies import fat_tree
from tests.benchmarks import plain_simpy
from tests.laws.plans import work
from tests.laws.worlds import PlainCost, cluster

ROOT = Path(__file__).parents[2]
TASKS, DEVICES = 200_000, 1_000


@cache
def random_graph(tasks: int) -> tuple[Plan, list[float], list[list[int]], list[int]]:
    """`tasks` tasks on 1,000 devices, each after up to three earlier ones, 1 to 20 s long."""
    rng = np.random.default_rng(0)
    device, seconds = rng.integers(0, DEVICES, tasks), rng.integers(1, 21, tasks)
    groups = {f"r{r}": Group(axes=(("one", 1, 1),), offset=r) for r in range(DEVICES)}
    ops: dict[tuple[int, int], Op] = {}
    listed, after = [], []
    for i in range(tasks):
        before = sorted(set(rng.integers(max(i - 5000, 0), i, 3).tolist())) if i else []
        key = (int(device[i]), int(seconds[i]))
        op = ops.setdefault(key, work(f"r{key[0]}", key[1]))
        listed.append(Task(str(i), op, tuple(map(str, before))))
        after.append(before)
    plan = Plan(name="random graph", n_ranks=DEVICES, groups=groups, tasks=tuple(listed))
    assert plan.digest
    return plan, [float(s) for s in seconds], after, device.tolist()


@pytest.mark.benchmark(group="random graph, tasks on 1,000 devices")
def test_random_graph(benchmark: BenchmarkFixture) -> None:
    plan, *_ = random_graph(TASKS)
    world = cluster(DEVICES, block=DEVICES)
    cost = PlainCost(world)
    trace = benchmark.pedantic(lambda: simulate(plan, world, cost), rounds=3, warmup_rounds=1)
    benchmark.extra_info["tasks_per_s"] = round(TASKS / benchmark.stats.stats.min)
    assert len(trace) == TASKS


@pytest.mark.benchmark(group="random graph, tasks on 1,000 devices")
def test_random_graph_plain_simpy(benchmark: BenchmarkFixture) -> None:
    """The same graph, and the same makespan."""
    plan, seconds, after, device = random_graph(TASKS)
    makespan = benchmark.pedantic(lambda: plain_simpy.play(seconds, after, device), rounds=1)
    benchmark.extra_info["tasks_per_s"] = round(TASKS / benchmark.stats.stats.min)
    world = cluster(DEVICES, block=DEVICES)
    assert makespan == pytest.approx(simulate(plan, world, PlainCost(world)).makespan_s)


@pytest.mark.benchmark(group="10,000 flows at once, fat tree of 1,024 hosts, max-min")
def test_flows_on_a_fat_tree(benchmark: BenchmarkFixture) -> None:
    rng = np.random.default_rng(0)
    catalog = Catalog()
    params = fat_tree.Params(
        device="server_cpu",
        nodes=1024,
        devices_per_node=1,
        inter="ethernet_100g",
        leaf_nodes=32,
        routing="ecmp",
        spines=32,
    )
    world = fat_tree.build(params, catalog)
    groups = {f"h{r}": Group(axes=(("one", 1, 1),), offset=r) for r in range(1024)}
    tasks = []
    for i in range(10_000):
        a, b = rng.choice(1024, 2, replace=False)
        size = int(rng.exponential(64 * 2**20)) + 1
        tasks.append(Task(str(i), Transfer(source=f"h{a}", target=f"h{b}", nbytes=size, stream=f"s{i}")))
    plan = Plan(name="flows", n_ranks=1024, groups=groups, tasks=tuple(tasks))
    assert plan.digest
    trace = benchmark.pedantic(lambda: simulate(plan, world, CostModel(world)), rounds=1, warmup_rounds=1)
    benchmark.extra_info["flows_per_s"] = round(10_000 / benchmark.stats.stats.min)
    assert not trace.incomplete


@pytest.mark.benchmark(group="64 MiB ring all-reduce, 2,048 ranks, each with its own delay")
def test_ring_with_skew(benchmark: BenchmarkFixture) -> None:
    delays = np.random.default_rng(0).exponential(1e-3, 2048)
    ends = benchmark.pedantic(lambda: ring_steps(delays, 64 * 2**20, 2e-6, 25e9), rounds=3, warmup_rounds=1)
    assert (ends >= delays.max()).all()


@pytest.mark.benchmark(group="ring all-reduce with skew, 256 ranks")
@pytest.mark.parametrize("how", ["engine", "plain SimPy"])
def test_ring_of_256(benchmark: BenchmarkFixture, how: str) -> None:
    delays = np.random.default_rng(0).exponential(1e-3, 256)
    step_s = 2e-6 + 64 * 2**20 / 256 / 25e9
    if how == "engine":
        last = benchmark(lambda: ring_steps(delays, 64 * 2**20, 2e-6, 25e9)).max()
    else:
        last = benchmark.pedantic(lambda: plain_simpy.ring(delays.tolist(), step_s), rounds=1)
    assert last == pytest.approx(ring_steps(delays, 64 * 2**20, 2e-6, 25e9).max())


@pytest.mark.benchmark(group="Llama 3 405B, one iteration: load, plan, simulate")
@pytest.mark.parametrize("gpus", [16_384, 65_536])
def test_llama_405b(benchmark: BenchmarkFixture, gpus: int) -> None:
    nodes, batch = gpus // 8, 2048 * gpus // 16_384

    def once() -> int:
        scenario = load(
            ROOT / "scenarios" / "llama3_405b_16k.yaml", (f"cluster.nodes={nodes}", f"workload.global_batch={batch}")
        )
        plan = scenario.plan()
        return len(simulate(plan, scenario.cluster(), CostModel(scenario.cluster())))

    spans = benchmark.pedantic(once, rounds=3, warmup_rounds=1)
    tracemalloc.start()
    once()
    benchmark.extra_info["peak_MB"] = round(tracemalloc.get_traced_memory()[1] / 1e6)
    tracemalloc.stop()
    assert spans > 10_000
