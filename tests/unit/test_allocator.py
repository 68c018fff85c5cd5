"""The allocator against trying everything; its limits; the planner that uses it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from costmodels.catalog import device
from costmodels.precision import PRECISIONS
from simcore.api import load
from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.errors import DataError, DoesNotFit, PlanError
from simcore.qsync.allocator import Allocation, allocate, recover
from simcore.qsync.frontier import Frontiers
from simcore.qsync.local import LocalGraph
from simcore.qsync.replay import Replayer
from simcore.qsync.search_state import ClassToPlan, State
from simcore.qsync.settings import allotted_B, kept_B, setting
from simcore.qsync.tables import local_graph
from tests.unit.test_exact import BATCH, Drawn, graph_of

OPTIONS = {"linear": 1, "matmul": 2, "relu": 1, "view": 1, "gelu": 1, "add": 2, "cat": 2}


def drawn_shape(rng: np.random.Generator, adjustable: int) -> list[tuple[str, tuple[int, ...]]]:
    """A graph of operators that read from the last few before them, until so many are adjustable."""
    shape: list[tuple[str, tuple[int, ...]]] = [("linear", ())]
    while sum(kind in ("linear", "matmul") for kind, _ in shape) < adjustable:
        kind = str(rng.choice(list(OPTIONS), p=[0.35, 0.1, 0.2, 0.05, 0.1, 0.1, 0.1]))
        first = max(len(shape) - 4, 0)
        read = [len(shape) - 1, *rng.integers(first, len(shape), OPTIONS[kind] - 1).tolist()]
        shape.append((kind, tuple(read)))
    return shape


def drawn_classes(seed: int, most: int = 8) -> tuple[list[ClassToPlan], Replayer, float]:
    """A T4 and, every other time, a second class; limits, launches, buckets and a tolerance."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, most + 1))
    planned = ["t4"] if rng.random() < 0.5 else ["t4", str(rng.choice(["v100_sxm2_16", "l4"]))]
    n = n if len(planned) == 1 else max(n // 2, 2)
    graph = graph_of(drawn_shape(rng, n))
    buckets = [[name] for name in reversed(graph.parameters)]
    launch_s, slowdown = float(rng.choice([0.0, 1.0, 5.0])), float(rng.choice([0.0, 0.2]))
    classes = []
    for name in planned:
        spec = replace(device(name), overlap_slowdown=slowdown)
        local = local_graph(graph, spec, BATCH, Drawn(seed, launch_s), buckets=buckets)
        if name == "l4":  # six precisions are too many to try all
            local = replace(local, allowed=local.allowed & np.isin(PRECISIONS, ("int8", "bfloat16", "float32")))
        omega = {
            local.graph.operators[i].name: {
                p: float(rng.lognormal(0, 2) * (64.0 if p == "int8" else 1.0)) if p != "float32" else 0.0
                for p in (PRECISIONS[k] for k in np.flatnonzero(local.allowed[i]))
            }
            for i in local.adjustable
        }
        classes.append(ClassToPlan(name=name, local=local, omega=omega, share=1 / len(planned), limit_B=np.inf))
    classes = [_limited(c, rng) for c in classes]
    tolerance = float(rng.choice([0.0, 0.02, 0.1, 0.3]))
    bucket_s = rng.uniform(0, 1, len(buckets)) * float(rng.choice([0.0, 1.0, 20.0]))
    return classes, Replayer(locals=tuple(c.local for c in classes), bucket_s=bucket_s), tolerance


def _limited(of: ClassToPlan, rng: np.random.Generator) -> ClassToPlan:
    """With a limit of memory between that of the smallest setting and that of float32, two times in three."""
    wide_B = allotted_B(of.local, setting(of.local, {}))
    if rng.random() < 1 / 3 or wide_B <= of.least_B:
        return of
    return replace(of, limit_B=of.least_B + float(rng.random()) * (wide_B - of.least_B))


def choices(of: LocalGraph) -> np.ndarray:
    """(choices, n) every choice of a class; operators that are not adjustable 0."""
    options = [np.flatnonzero(row).tolist() if row.any() else [0] for row in of.allowed]
    return np.array(list(product(*options)))


def best_variance(classes: list[ClassToPlan], replayer: Replayer, limit_s: float) -> float:
    """The least disturbance of all choices within the limits: that of the first which keeps them, by rising disturbance."""
    every = [choices(c.local) for c in classes]
    of_class = [c.cost[np.arange(c.local.n), e].sum(axis=1) for c, e in zip(classes, every, strict=True)]
    together = of_class[0] if len(classes) == 1 else (of_class[0][:, None] + of_class[1][None, :]).ravel()
    known: list[dict[int, object]] = [{} for _ in classes]

    def fitting(k: int, at: int) -> object:
        if at not in known[k]:
            chosen = classes[k].setting_of(every[k][at])
            known[k][at] = chosen if classes[k].fits(chosen) else None
        return known[k][at]

    for flat in np.argsort(together, kind="stable"):
        places = np.unravel_index(flat, [len(e) for e in every])
        settings = [fitting(k, int(at)) for k, at in enumerate(places)]
        if all(s is not None for s in settings):
            seconds = replayer.replay(settings).iteration_s  # type: ignore[arg-type]
            if seconds <= limit_s * (1 + 1e-9):
                return float(together[flat])
    raise AssertionError("the allocator's own choice keeps the limits")


def compared(seed: int, most: int = 8) -> tuple[Allocation, float]:
    classes, replayer, tolerance = drawn_classes(seed, most)
    found = allocate(classes, replayer, tolerance=tolerance)
    assert found.complete and found.iteration_s <= found.limit_s * (1 + 1e-9)
    for of, chosen in zip(classes, found.settings, strict=True):
        assert allotted_B(of.local, chosen) <= of.limit_B
        assert of.local.allowed[of.local.adjustable, chosen.computes[of.local.adjustable]].all()
    return found, best_variance(classes, replayer, found.limit_s)


def test_variance_is_that_of_the_best_choice_of_all() -> None:
    raised = recovered_less = 0
    for seed in range(150):
        found, best = compared(seed, most=6)
        assert best * (1 - 1e-9) <= found.variance <= best * 1.05 + 1e-12, seed
        raised += found.initial_variance > best * 1.05
        recovered_less += recovery_alone(seed, found.limit_s) > best * 1.05 + 1e-12
    assert raised > 50 and recovered_less > 5  # there was something to find, and recovery alone did not


def recovery_alone(seed: int, limit_s: float) -> float:
    classes, replayer, _ = drawn_classes(seed, most=6)
    state = State(classes, replayer, limit_s, [c.fastest for c in classes if c.fastest is not None])
    recover(state)
    return state.variance


def test_the_fastest_setting_that_fits_and_the_smallest() -> None:
    limited = 0
    for seed in range(60):
        for of in drawn_classes(seed, most=5)[0]:
            every = [of.setting_of(chosen) for chosen in choices(of.local)]
            fitting = [float(s.device_s.sum()) for s in every if of.fits(s)]
            limited += len(fitting) < len(every)
            assert of.least_B == pytest.approx(min(allotted_B(of.local, s) for s in every))
            assert of.fastest is not None and of.fits(of.fastest)
            assert float(of.fastest.device_s.sum()) == pytest.approx(min(fitting))
    assert limited > 20


def test_prices_find_the_least_sum_wherever_seconds_count() -> None:
    for seed in range(20):
        of = drawn_classes(seed, most=5)[0][0]
        for start in (0, of.local.n // 2):
            chosen = Frontiers(of.local).cheapest(price_s=0.1, price_B=1e-8, costs=of.cost, backward_from=start)
            sums = [
                of.variance(s)
                + 0.1 * float(s.device_s[:, 0].sum() + s.device_s[start:, 1].sum())
                + 1e-8 * kept_B(of.local, s)
                for s in (of.setting_of(c) for c in [chosen, *choices(of.local)])
            ]
            assert sums[0] == pytest.approx(min(sums))


def test_a_limit_that_nothing_keeps_has_no_fastest_setting() -> None:
    (of, *_), _, _ = drawn_classes(1)
    assert replace(of, limit_B=of.least_B - 1.0).fastest is None
    assert replace(of, limit_B=of.least_B).fastest is not None


def test_a_rejected_trial_leaves_no_trace_and_runs_agree() -> None:
    classes, replayer, _ = drawn_classes(3)
    fastest = [c.fastest for c in classes if c.fastest is not None]
    state = State(classes, replayer, 0.0, fastest)
    before, replayed = [s.computes.copy() for s in state.settings], state.replayed
    recovered, rejected = recover(state)
    assert recovered == 0 and rejected > 0 and state.replayed is replayed
    assert all((s.computes == b).all() for s, b in zip(state.settings, before, strict=True))
    once, again = (allocate(classes, replayer, tolerance=0.1) for _ in range(2))
    assert all((a.computes == b.computes).all() for a, b in zip(once.settings, again.settings, strict=True))
    assert (once.variance, once.replays, once.refined) == (again.variance, again.replays, again.refined)


SCENARIO = """\
name: toy
cluster:
  topology: fat_tree
  pools:
    - {device: v100_sxm2_16, nodes: 1, devices_per_node: 2, intra: nvlink2, inter: ethernet_100g}
    - {device: t4, nodes: 1, devices_per_node: 2, intra: pcie3, inter: ethernet_100g}
workload: {name: operator_training, model: resnet50, batch: 64}
planner: {name: qsync, tolerance: 0.1}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "toy.yaml"
    path.write_text(SCENARIO)
    yield path


def test_a_plan_keeps_its_limits_and_takes_as_long_as_it_says(scenario: Path) -> None:
    made = load(scenario, ["planner.memory.t4=8 GB"])
    plan = made.plan()
    found, predicted = plan.decisions, plan.decisions["predicted"]
    assert found["held"] == {"v100_sxm2_16": "float32"}
    assert set(found["precision"]["v100_sxm2_16"].values()) == {"float32"}
    assert found["precision"]["t4"]["fc"] == "float32" and found["counts"]["t4"]["float16"] > 0
    assert predicted["memory_B"]["t4"] <= 8.0e9 < predicted["uniform"]["float16"]["memory_B"]["t4"]
    assert predicted["iteration_s"] <= found["search"]["T0"] * 1.1 < predicted["uniform"]["float32"]["iteration_s"]
    assert 0 < predicted["variance"] < predicted["uniform"]["int8"]["variance"] / 1000
    trace = simulate(plan, made.cluster(), CostModel(made.cluster()))
    assert predicted["iteration_s"] == pytest.approx(trace.makespan_s, rel=0.005)
    assert load(scenario, ["planner.memory.t4=8 GB"]).plan().digest == plan.digest


def test_the_fastest_class_is_planned_where_it_is_told_to_or_limited(scenario: Path) -> None:
    for override in ("planner.precision.v100_sxm2_16=planned", "planner.memory.v100_sxm2_16=15 GB"):
        found = load(scenario, [override]).plan().decisions
        # it waits for the T4, so that it need not compute in fewer bits
        assert found["held"] == {} and found["counts"]["v100_sxm2_16"] == {"float32": 54}
    found = load(scenario, ["planner.precision={t4: float32, v100_sxm2_16: planned}"]).plan().decisions
    assert found["held"] == {"t4": "float32"}
    found = load(scenario, ["planner.precision.t4=int8"]).plan().decisions
    assert found["held"] == {"t4": "int8", "v100_sxm2_16": "float32"} and found["counts"]["t4"] == {"int8": 54}


def test_what_is_kept_and_what_may_be_chosen(scenario: Path) -> None:
    wanted = ["planner.precisions=[float16]", "planner.keep=[layer1, '*downsample.0']", "planner.tolerance=0"]
    chosen = load(scenario, wanted).plan().decisions["precision"]["t4"]
    kept = [n for n in chosen if n.startswith("layer1.") or n.endswith("downsample.0")]
    assert len(kept) == 13 and {chosen[n] for n in kept} == {"float32"}
    assert set(chosen.values()) == {"float16", "float32"}


def test_a_solver_confirms_small_models(scenario: Path) -> None:
    plan = load(scenario, ["workload.model=small_resnet"]).plan()
    search, variance = plan.decisions["search"], plan.decisions["predicted"]["variance"]
    assert search["exact"]["status"] == "optimal" and search["exact"]["bound"] == pytest.approx(variance, rel=1e-4)
    assert (
        "exact" not in load(scenario, ["workload.model=small_resnet", "planner.exact=never"]).plan().decisions["search"]
    )


def test_everything_that_is_wrong_is_said_at_once(scenario: Path) -> None:
    wrong = ["planner.precision.h100=int8", "planner.precision.v100_sxm2_16=int8", "planner.precisions=[fp8]"]
    with pytest.raises(PlanError) as refused:
        load(scenario, [*wrong, "planner.keep=[fc, layer9]"]).plan()
    fields = [p.field for p in refused.value.problems]
    assert fields == ["planner.precision.h100", "planner.precision.v100_sxm2_16", "planner.precisions", "planner.keep"]
    assert "layer9" in str(refused.value) and "fc;" not in str(refused.value)


def test_what_does_not_fit_says_what_is_lacking(scenario: Path) -> None:
    with pytest.raises(
        DoesNotFit, match=r"memory of t4: given at least 6\.\d+ GB; allowed: 3\.00 GB\. 3\.\d+ GB are lacking"
    ):
        load(scenario, ["planner.memory.t4=3 GB"]).plan()


def test_statistics_are_named_and_looked_for(scenario: Path) -> None:
    assert load(scenario, ["workload.model=vgg16"]).plan().decisions["statistics"]["measured"] is False
    with pytest.raises(DataError, match=r"workload\.statistics"):
        load(scenario, ["workload.statistics=nobody"]).plan()
