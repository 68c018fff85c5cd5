"""How many configurations a second the closed form weighs, beside simulating them one by one. `make benchmark` prints the table."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from simcore.cluster import Cluster
from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.planners import fixed, parallelism_search
from simcore.planners.parallelism_search import Params
from simcore.scenario import load
from simcore.training.configurations import enumerate_all
from simcore.training.plans import training_plan
from simcore.training.quick import Quick
from simcore.training.quick_parts import Parts
from simcore.workloads.transformer_training import TransformerTraining

ROOT = Path(__file__).parents[2]


@cache
def job(hosts: int, model: str, batch: int) -> tuple[TransformerTraining, Cluster]:
    size = (f"cluster.nodes={hosts}", f"workload.model={model}", f"workload.global_batch={batch}")
    scenario = load(ROOT / "scenarios" / "search_70b_64.yaml", size)
    workload = scenario.workload()
    assert isinstance(workload, TransformerTraining)
    return workload, scenario.cluster()


def weigh(workload: TransformerTraining, cluster: Cluster) -> int:
    """Seconds and memory of every configuration; returns how many there are."""
    params = Params()

    def choose(table, row):  # type: ignore[no-untyped-def]
        return parallelism_search._choice(table.row(row), workload, cluster, params)

    quick = Quick(Parts(workload, cluster, CostModel(cluster)), choose)
    table = enumerate_all(workload, cluster.n_ranks, parallelism_search._limits(params))
    assert np.isfinite(quick.seconds(table)).all() and np.isfinite(quick.memory_B(table)).all()
    return len(table)


@pytest.mark.benchmark(group="configurations of a training job")
@pytest.mark.parametrize(
    ("hosts", "model", "batch"),
    [(8, "llama3_70b", 128), (32, "llama3_70b", 512), (128, "llama3_70b", 1024), (2048, "llama3_405b", 2048)],
)
def test_closed_form(benchmark: BenchmarkFixture, hosts: int, model: str, batch: int) -> None:
    workload, cluster = job(hosts, model, batch)
    count = benchmark.pedantic(lambda: weigh(workload, cluster), rounds=3, warmup_rounds=1)
    benchmark.extra_info["configurations_per_s"] = round(count / benchmark.stats.stats.min)
    assert count > 1000


@pytest.mark.benchmark(group="configurations of a training job")
def test_one_by_one_through_the_engine(benchmark: BenchmarkFixture) -> None:
    """The baseline: a plan and a simulation for each."""
    workload, cluster = job(8, "llama3_70b", 128)

    def simulate_some() -> None:
        for microbatch in (1, 2):
            for tp in (2, 4, 8):
                given = fixed.Params(tp=tp, pp=4, microbatch=microbatch, zero=1, recompute="full", detail="chunk")
                plan = training_plan(workload, fixed.choice_of(given, workload, cluster.n_ranks), cluster)
                assert simulate(plan, cluster, CostModel(cluster)).makespan_s > 0

    benchmark.pedantic(simulate_some, rounds=1, warmup_rounds=1)
    benchmark.extra_info["configurations_per_s"] = round(6 / benchmark.stats.stats.min, 1)
