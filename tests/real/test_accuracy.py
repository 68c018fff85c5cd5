"""Training in several precisions, small: same start and batches, the planner's plan, int8 that rounds, what a table says."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from costmodels.precision import allowed
from real.precision.accuracy import TASKS, batches, start, train
from real.precision.accuracy_plans import VARIANTS, Choices, choices
from real.precision.accuracy_table import Outcome, summary, verdict
from real.precision.binding import bind
from real.precision.digits import Split
from real.precision.models import Model
from real.precision.tracing import trace

HAS = ("int8", "float16", "float32")


def small(split: Split) -> Split:
    return replace(split, inputs=split.inputs[:640], classes=split.classes[:640])


@pytest.fixture(scope="module", params=TASKS, ids=[t.name for t in TASKS])
def prepared(request: pytest.FixtureRequest) -> tuple[object, Split, Choices]:
    """A task, ten of its batches, and the precisions of all variants for a seed."""
    split = small(request.param.data(0))
    return request.param, split, choices(request.param, 0, split)


def test_the_plan_is_the_planners_and_keeps_what_reads_outliers_out_of_int8(prepared) -> None:
    task, _, found = prepared
    plan, chosen = found.plan, found.precision["qsync"]
    needs = plan["uniform_memory_B"]
    assert tuple(found.precision) == VARIANTS and found.has == HAS
    assert needs["int8"] < plan["memory_B"] <= plan["memory_limit_B"] < min(needs["float16"], needs["float32"])
    assert plan["iteration_s"] < plan["uniform_iteration_s"]["int8"]
    assert plan["counts"] == {p: n for p in HAS if (n := list(chosen.values()).count(p))}
    assert plan["counts"]["int8"] >= len(chosen) / 2
    assert chosen["conv1" if task.name == "resnet" else "patches"] != "int8"
    assert plan["variance"] < plan["uniform_variance"]["int8"] / 100


def test_a_random_choice_has_as_many_operators_in_int8(prepared) -> None:
    _, _, found = prepared
    chosen, drawn = found.precision["qsync"], found.precision["random"]
    assert list(drawn.values()).count("int8") == list(chosen.values()).count("int8")
    assert chosen.keys() == drawn.keys() and set(drawn.values()) == {"int8", "float32"}


def test_variants_start_alike_and_see_the_same_batches(prepared) -> None:
    task, split, _ = prepared
    first, second = (start(task, split, 3).module.state_dict() for _ in range(2))
    other = start(task, split, 4).module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    rows, again = ([r.tolist() for r in batches(task, 640, 3)] for _ in range(2))
    assert rows == again != [r.tolist() for r in batches(task, 640, 4)]
    assert len(rows) == task.epochs * (640 // task.batch)
    assert sorted(i for r in rows[: 640 // task.batch] for i in r) == list(range(640))


def test_float32_is_training_without_any_binding(prepared) -> None:
    task, split, found = prepared
    task = replace(task, epochs=1)
    graph = trace(start(task, split, 0))
    trained = train(task, graph, split, found.precision["float32"], HAS, 0)
    model, rows = start(task, split, 0), next(batches(task, 640, 0))
    loss = model.objective((split.inputs[rows],), split.classes[rows])
    assert trained.losses[0] == float(loss.detach()) and trained.skipped == 0
    assert trained.losses[-1] < trained.losses[0]


def test_int8_disturbs_the_first_gradient_and_the_plan_hardly(prepared) -> None:
    task, split, found = prepared
    graph = trace(start(task, split, 0))

    def gradient(variant: str) -> torch.Tensor:
        model, generator = start(task, split, 0), torch.Generator().manual_seed(0)
        how = {"rounding": task.rounding, "emulate": True, "generator": generator}
        with bind(model.module, graph, found.precision[variant], HAS, **how):
            loss = functional.cross_entropy(model.module(split.inputs[:64]), split.classes[:64])
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.module.parameters()])

    exact = gradient("float32")
    wrong = {v: float((gradient(v) - exact).norm() / exact.norm()) for v in ("int8", "float16", "qsync")}
    assert 0 < wrong["float16"] < wrong["qsync"] < wrong["int8"] / 2


def test_int8_numbers_are_whole_multiples_of_a_scale() -> None:
    """Products with an identity matrix show what the operator multiplied."""
    linear = torch.nn.Linear(8, 8, bias=False)
    torch.nn.init.eye_(linear.weight)
    model = Model(
        name="identity",
        source="test",
        sample="8 numbers",
        module=linear,
        example=lambda batch: ((torch.zeros(batch, 8),), None),
        loss=lambda outputs, _: outputs.sum(),
    )
    graph = trace(model)
    (name,) = [o.name for o in graph if allowed(o, HAS)]
    x = torch.rand(16, 8)
    x[0, 0] = 127.0
    with bind(linear, graph, {name: "int8"}, HAS, emulate=True):
        seen = model.module(x)
        seen.sum()
    assert torch.equal(seen, seen.round()) and not torch.equal(seen, x)


def outcomes(accuracy: dict[str, list[float]]) -> list[Outcome]:
    return [
        Outcome(
            task="toy",
            variant=variant,
            seed=seed,
            accuracy=value,
            first_loss=2.3,
            last_loss=0.1,
            in_int8=5,
            skipped=0,
            seconds=1.0,
        )
        for variant, values in accuracy.items()
        for seed, value in enumerate(values)
    ]


def test_a_table_pairs_seeds_and_says_what_was_won_back() -> None:
    runs = {"float32": [90.0, 94.0], "float16": [90.0, 94.0], "int8": [82.0, 84.0], "random": [85.0, 90.0]}
    rows = {r.variant: r for r in summary(outcomes({**runs, "qsync": [89.7, 93.9]}))}
    assert (rows["int8"].below, rows["int8"].error) == (pytest.approx(9.0), pytest.approx(1.0))
    assert rows["qsync"].below == pytest.approx(0.2) and rows["qsync"].recovered == pytest.approx(8.8 / 9)
    assert rows["float32"].deviation == pytest.approx(8**0.5) and rows["int8"].recovered is None
    assert "as wanted" in verdict(list(rows.values()))
    poor = summary(outcomes({**runs, "qsync": [89.0, 93.0]}))
    assert "less than wanted" in verdict(poor) and "89%" in verdict(poor)


def test_where_int8_loses_nothing_the_table_says_so() -> None:
    same = {v: [90.0, 94.0] for v in VARIANTS} | {"int8": [89.0, 94.5]}
    rows = summary(outcomes(same))
    assert "loses nothing" in verdict(rows) and all(r.recovered is None for r in rows)


def test_seeds_that_a_variant_lacks_are_left_out() -> None:
    runs = outcomes({v: [90.0, 94.0] for v in VARIANTS})
    rows = summary([o for o in runs if (o.variant, o.seed) != ("random", 1)])
    assert {r.seeds for r in rows} == {1} and summary(runs[:4]) == []
