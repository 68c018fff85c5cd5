"""Reports: numbers worked out by hand, memory, warnings, text that is the same every time."""

import json

import pytest

from simcore.engine.simulate import simulate
from simcore.errors import Incomparable
from simcore.plan import Group, Plan, Task
from simcore.reporting.metrics import UNITS
from simcore.reporting.report import report
from simcore.reporting.text import amount, as_text, report_view
from tests.laws.worlds import PlainCost, cluster
from tests.unit.toys import compute, plan_of, relay, trace_of

DEVICE = {"memory_B": 100.0, "flop_per_s": {"float32": 50.0}, "price_usd_per_hour": 3600.0, "power_W": 10.0}


def two_ranks() -> Plan:
    groups = {"all": Group.listed([0, 1])}
    tasks = [Task("m0/fwd/embed", compute("all")), Task("m0/bwd/embed", compute("all"))]
    counts = {"tokens_per_iteration": 40, "flops_per_iteration": 80.0, "precision": "float32"}
    return plan_of(tasks, groups, 2, **counts)


def rows(start: float, length: float) -> list[tuple[str, int, float, float]]:
    half = length / 2
    return [
        ("m0/fwd/embed", lane, start, start + half) if first else ("m0/bwd/embed", lane, start + half, start + length)
        for first in (True, False)
        for lane in (0, 1)
    ]


def test_numbers_by_hand() -> None:
    plan = two_ranks()
    spans = rows(0, 1) + rows(1, 2) + rows(3, 4)
    trace = trace_of(plan, spans, iterations=[0] * 4 + [1] * 4 + [2] * 4, environment={"devices": {"plain": DEVICE}})
    found = report(plan, trace).metrics
    assert (found["iterations"], found["iteration_s"], found["makespan_s"]) == (3, 2.0, 7.0)
    assert found["iteration_mean_s"] == pytest.approx(7 / 3)
    assert found["tokens_per_s"] == 20
    assert found["flop_per_s_per_device"] == 20
    assert found["mfu"] == pytest.approx(0.4)
    assert found["compute_share"] == 1
    assert found["usd_per_iteration"] == pytest.approx(2 * 2)
    assert found["usd_per_million_tokens"] == pytest.approx(4 / 40 * 1e6)
    assert found["energy_J_per_iteration"] == pytest.approx(2 * 10 * 2)


def test_numbers_that_nobody_gave_are_none() -> None:
    plan = two_ranks()
    found = report(plan, trace_of(plan, rows(0, 1))).metrics
    assert set(found) == set(UNITS)
    assert found["mfu"] is None
    assert found["usd_per_iteration"] is None
    assert found["energy_J_per_iteration"] is None


def test_parts_are_of_an_average_rank_and_iteration() -> None:
    plan = two_ranks()
    trace = trace_of(plan, rows(0, 1) + rows(1, 3), iterations=[0] * 4 + [1] * 4)
    assert report(plan, trace).parts_s == {"forward": pytest.approx(1.0), "backward": pytest.approx(1.0)}


def test_an_iteration_that_did_not_end_does_not_count() -> None:
    plan = two_ranks()
    spans = rows(0, 1) + rows(1, 2)[:3]
    trace = trace_of(plan, spans, iterations=[0] * 4 + [1] * 3, incomplete=(("m0/bwd/embed", 1),))
    assert report(plan, trace).metrics["iterations"] == 1
    assert report(plan, trace).metrics["iteration_s"] == 1
    only = trace_of(plan, rows(0, 1)[:3], incomplete=(("m0/bwd/embed", 1),))
    assert report(plan, only).metrics["iteration_s"] is None


def test_memory_is_put_together_where_ranks_are_alike_and_warned_of_where_it_does_not_fit() -> None:
    plan = two_ranks()
    same = ({"weights": 60.0, "activations": 50.0},) * 2
    found = report(plan, trace_of(plan, rows(0, 1), memory_B=same, environment={"devices": {"plain": DEVICE}}))
    (memory,) = found.memory
    assert (memory.ranks, memory.used_B, memory.capacity_B) == (2, 110.0, 100.0)
    assert any("110 B" in warning for warning in found.warnings)
    different = ({"weights": 60.0}, {"weights": 70.0})
    assert [m.used_B for m in report(plan, trace_of(plan, rows(0, 1), memory_B=different)).memory] == [70.0, 60.0]


def test_a_trace_of_another_plan_is_refused() -> None:
    with pytest.raises(Incomparable):
        report(relay(3), trace_of(two_ranks(), rows(0, 1)))


def test_the_report_is_byte_identical_and_plain_json() -> None:
    plan, world = relay(4), cluster(4)
    texts = []
    for _ in range(2):
        found = report(plan, simulate(plan, world, PlainCost(world)))
        texts.append((found.to_json(), as_text(report_view(found))))
    assert texts[0] == texts[1]
    data = json.loads(texts[0][0])
    assert {"plan_digest", "backend", "metrics", "memory", "warnings"} <= set(data)


def test_the_text_says_what_matters() -> None:
    plan, world = relay(4), cluster(4)
    text = as_text(report_view(report(plan, simulate(plan, world, PlainCost(world)))))
    for phrase in ("iteration_s", "12.5 s", "m*/s*c*/fwd", "waiting: transfer partner", "Peak memory"):
        assert phrase in text


def test_an_empty_trace_is_reported_without_numbers() -> None:
    plan = two_ranks()
    found = report(plan, trace_of(plan, []))
    assert found.metrics["iteration_s"] is None
    assert "iteration_s" not in as_text(report_view(found))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (0.0, "s", "0 ns"),
        (3.2e9, "B", "3.2 GB"),
        (4.12e14, "flop/s", "412 Tflop/s"),
        (0.345, "share", "34.5%"),
        (1234567.0, "/s", "1,234,567/s"),
        (0.5, "/s", "0.5/s"),
        (12.5, "USD", "12.5 USD"),
        (3, "", "3"),
        (None, "s", "-"),
    ],
)
def test_amounts_as_people_read_them(value: float | None, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_the_error_to_expect_is_shown_as_a_range() -> None:
    plan = relay()
    rows = [(t.id, 0, float(i), float(i + 1)) for i, t in enumerate(plan.tasks)]
    known = report(plan, trace_of(plan, rows, extra={"error": {"iteration_s": 0.25}}))
    unknown = report(plan, trace_of(plan, rows))
    length = known.metrics["iteration_s"]
    assert length == len(plan.tasks)
    shown = as_text(report_view(known))
    assert f"{length} s ({length / 1.25:g} s - {length / 0.75:.4g} s)".replace(".0 s", " s") in shown
    assert known.to_dict()["error"] == {"iteration_s": 0.25}
    assert unknown.error == {}
