"""The search against brute force on small clusters, its closed form against the simulator, and what it says when nothing fits."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.errors import DoesNotFit, PlanError
from simcore.plan import Compute
from simcore.planners import fixed
from simcore.planners.parallelism_search import Params, plan
from simcore.scenario import Scenario, load
from simcore.sim import SimBackend
from simcore.tables.training import table_of
from simcore.training.choice import Choice, problems_of
from simcore.training.configurations import COLUMNS, RECOMPUTE, Configurations, Limits, divisors, enumerate_all
from simcore.training.overheads import NONE
from simcore.training.plans import training_plan
from simcore.training.quick import Quick
from simcore.training.quick_parts import Parts

ROOT = Path(__file__).parents[2]
SMALL = (
    "cluster={topology: nvswitch_node, device: a100_sxm_80, devices_per_node: 4}",
    "workload={name: transformer_training, model: {layers: 4, hidden: 512, ffn: 1536, heads: 4, kv_heads: 2, vocab: 4096}, "
    "seq_len: 1024, global_batch: 8}",
)


def small(planner: str = "parallelism_search") -> Scenario:
    return load(ROOT / "scenarios" / "search_70b_64.yaml", (*SMALL, f"planner={{name: {planner}}}"))


def brute_force(scenario: Scenario, largest: Limits) -> set[tuple[int, ...]]:
    """Every combination of small numbers that `problems_of` has nothing against."""
    workload, n = scenario.workload(), scenario.cluster().n_ranks
    sizes = product(divisors(n, n), divisors(n, n), divisors(n, n), range(1, 5), range(1, 9), range(3), range(4))
    found = set()
    for tp, pp, cp, vpp, microbatch, mode, zero in sizes:
        if n % (tp * pp * cp) or (zero and n // (tp * pp) == 1) or vpp > largest.max_vpp:
            continue
        given = fixed.Params(
            tp=tp, pp=pp, cp=cp, vpp=vpp, microbatch=microbatch, zero=zero, recompute=RECOMPUTE[mode], detail="chunk"
        )
        choice = fixed.choice_of(given, workload, n)
        if not problems_of(choice, workload, n):
            found.add((choice.dp, tp, pp, cp, vpp, microbatch, mode, zero))
    return found


def test_the_search_considers_exactly_what_is_feasible() -> None:
    scenario = small()
    limits = Limits(max_tp=64, max_cp=64, max_vpp=4, max_microbatch=16)
    table = enumerate_all(scenario.workload(), 4, limits)
    rows = [tuple(int(getattr(table, name)[i]) for name in COLUMNS) for i in range(len(table))]
    assert len(rows) == len(set(rows))
    assert set(rows) == brute_force(scenario, limits)


@pytest.mark.slow
def test_the_search_finds_the_fastest_of_all() -> None:
    """Every feasible plan is simulated; the search simulates ten of them and may miss by what ranks alike."""
    scenario = small()
    workload, cluster = scenario.workload(), scenario.cluster()
    backend = SimBackend.from_scenario(scenario)
    table = enumerate_all(workload, 4, Limits(max_tp=64, max_cp=64, max_vpp=2, max_microbatch=2, recompute=("none",)))
    times = []
    for i in range(len(table)):
        given = fixed.Params.model_validate({**table.row(i), "detail": "chunk"})
        times.append(backend.run(training_plan(workload, fixed.choice_of(given, workload, 4), cluster)).makespan_s)
    best = scenario.plan().decisions["search"]["best"]
    assert best[0]["seconds"] <= min(times) * 1.02
    assert [b["seconds"] for b in best] == sorted(b["seconds"] for b in best)


def test_the_closed_form_is_close_to_the_simulator() -> None:
    found = small().plan().decisions["search"]
    errors = [abs(b["estimate_s"] / b["seconds"] - 1) for b in found["best"]]
    assert len(errors) == 10
    assert np.median(errors) < 0.1


def test_without_a_simulator_the_closed_form_decides() -> None:
    scenario = small()
    cluster = scenario.cluster()
    chosen = plan(scenario.workload(), cluster, CostModel(cluster), Params(simulate=3))
    search = chosen.decisions["search"]
    assert search["simulated"] == 0
    assert [b["seconds"] for b in search["best"]] == [b["estimate_s"] for b in search["best"]]
    assert search["considered"] > search["pruned"]
    assert {k: v for k, v in search["best"][0].items() if k in ("dp", "tp")} == {
        k: chosen.decisions["parallelism"][k] for k in ("dp", "tp")
    }


def test_when_nothing_fits_the_nearest_miss_is_named() -> None:
    scenario = load(
        ROOT / "scenarios" / "search_70b_64.yaml", ("cluster.nodes=1", "cluster.device=t4", "cluster.intra=pcie3")
    )
    with pytest.raises(DoesNotFit, match="GB are lacking in the nearest miss"):
        scenario.plan()


def test_when_nothing_divides_it_says_so() -> None:
    scenario = load(ROOT / "scenarios" / "search_70b_64.yaml", ("workload.global_batch=1", "cluster.nodes=81"))
    with pytest.raises(PlanError, match="no parallelism divides"):
        scenario.plan()


def test_a_configuration_costs_the_same_whatever_is_weighed_beside_it() -> None:
    """ZeRO 3 adds gradients to sums of shards, the others to whole ones, although all else that they compute is the same."""
    table = enumerate_all(small().workload(), 4, Limits(max_tp=4, max_cp=1, max_vpp=1, max_microbatch=2))
    together = quick_of(small()).seconds(table)
    alone = [quick_of(small()).seconds(table[np.array([i])])[0] for i in range(len(table))]
    assert np.allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize(
    "given",
    [
        {"dp": 4, "zero": 3},
        {"dp": 4, "zero": 3, "microbatch": 2, "recompute": "full"},
        {"dp": 2, "pp": 2, "vpp": 2, "microbatch": 4},
        {"pp": 4, "vpp": 1, "microbatch": 4},
    ],
)
def test_the_closed_form_follows_the_simulator(given: dict[str, int | str]) -> None:
    """Gradients that leave while parameters come; chunks that wait where there are fewer microbatches than stages."""
    scenario = small()
    workload, cluster = scenario.workload(), scenario.cluster()
    choice = fixed.choice_of(fixed.Params.model_validate({**given, "detail": "chunk"}), workload, 4)
    simulated = simulate(training_plan(workload, choice, cluster), cluster, CostModel(cluster)).makespan_s
    assert quick_of(scenario).seconds(table_of(choice))[0] == pytest.approx(simulated, rel=0.05)


def quick_of(scenario: Scenario) -> Quick:
    workload, cluster = scenario.workload(), scenario.cluster()

    def choose(table: Configurations, row: int) -> Choice:
        return fixed.choice_of(fixed.Params.model_validate({**table.row(row), "detail": "chunk"}), workload, 4)

    return Quick(Parts(workload, cluster, CostModel(cluster)), choose)


def test_kernels_cost_the_same_one_by_one_and_together() -> None:
    """Products, attention and what streams, forward and backward, also several launches of one."""
    scenario = small()
    workload, device = scenario.workload(), scenario.cluster().devices[0]
    kernels = list(
        quick_of(scenario).parts.pass_kernels(fixed.choice_of(fixed.Params(tp=2, detail="chunk"), workload, 4))
    )
    kernels += [replace(k, count=3) for k in kernels]
    for overheads in (None, NONE):
        cost = CostModel(scenario.cluster(), overheads)
        each = [cost.compute(Compute(group="all", kernels=(k,)), device).seconds for k in kernels]
        assert cost.seconds_each(kernels, device) == pytest.approx(each, rel=1e-12)
