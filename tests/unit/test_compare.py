"""Simulated and measured side by side; refusals; saved traces."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simcore.api import load
from simcore.compare import compare, compare_reports, compare_traces
from simcore.engine.simulate import simulate
from simcore.errors import CannotRun, Incomparable, Problem
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.reporting.report import report
from simcore.reporting.text import as_text
from simcore.reporting.views import comparison_view
from simcore.scenario import Scenario
from simcore.trace import Trace
from tests.laws.worlds import PlainCost, cluster
from tests.unit.toys import relay, write_scenario


def slowed(trace: Trace, factor: float, backend: str = "real") -> Trace:
    return replace(trace, backend=backend, start_s=trace.start_s * factor, end_s=trace.end_s * factor)


def simulated() -> tuple[Plan, Trace]:
    plan, world = relay(3), cluster(3)
    return plan, simulate(plan, world, PlainCost(world))


class Fake:
    """Backends that play the relay, the real one at a speed that changes from run to run."""

    def __init__(self, *factors: float, refuses: bool = False) -> None:
        self.plan, self.trace = simulated()
        self.factors = list(factors)
        self.refuses = refuses
        self.ran: list[str] = []

    def __call__(self, name: str, scenario: Scenario) -> Any:
        fake = self

        class Backend:
            def run(self, plan: Plan, *, progress: Progress | None = None) -> Trace:
                fake.ran.append(name)
                if name == "real" and fake.refuses:
                    raise CannotRun("no", [Problem("plan", "relay", "something simpler")])
                return fake.trace if name == "sim" else slowed(fake.trace, fake.factors.pop(0))

        return Backend()


def test_errors_are_fractions_of_what_was_measured() -> None:
    plan, trace = simulated()
    found = compare_traces(plan, trace, [slowed(trace, 1.25)])
    row = found.metrics["iteration_s"]
    assert row["simulated"] == trace.makespan_s
    assert row["measured"] == pytest.approx(1.25 * trace.makespan_s)
    assert row["error"] == pytest.approx(-0.2)
    assert found.parts_s["forward"]["error"] == pytest.approx(-0.2)
    assert found.spread is None


def test_of_several_runs_the_median_counts(tmp_path: Path) -> None:
    backends = Fake(1.0, 4.0, 2.0)
    seen: list[float] = []
    found = compare(
        load(write_scenario(tmp_path)), plan=backends.plan, repeat=3, backends=backends,
        progress=lambda share, phrase: seen.append(share),
    )  # fmt: skip
    assert backends.ran == ["sim", "real", "real", "real"]
    assert found.metrics["iteration_s"]["error"] == pytest.approx(-0.5)
    assert found.spread == pytest.approx(1.5)
    assert found.runs == 3
    assert set(found.to_dict()) >= {"plan_digest", "metrics"}


def test_what_cannot_run_for_real_is_refused_with_its_reason(tmp_path: Path) -> None:
    backends = Fake(refuses=True)
    with pytest.raises(CannotRun, match="something simpler"):
        compare(load(write_scenario(tmp_path)), plan=backends.plan, backends=backends)


def test_different_plans_are_incomparable() -> None:
    plan, trace = simulated()
    other = replace(trace, plan_digest="f" * 64)
    with pytest.raises(Incomparable) as caught:
        compare_traces(plan, trace, [other])
    assert caught.value.problems[0].field == "plan_digest"
    with pytest.raises(Incomparable):
        compare_traces(relay(4), trace, [trace])
    world = cluster(4)
    with pytest.raises(Incomparable):
        compare_reports(report(plan, trace), [report(relay(4), simulate(relay(4), world, PlainCost(world)))])


def test_numbers_that_one_world_lacks_have_no_error() -> None:
    plan, trace = simulated()
    bare = replace(trace, memory_B=(), environment={})
    row = compare_traces(plan, trace, [bare]).metrics["memory_peak_B"]
    assert (row["simulated"], row["measured"], row["error"]) == (0.0, None, None)


def test_the_table_has_a_line_for_each_metric_and_part() -> None:
    plan, trace = simulated()
    text = as_text(comparison_view(compare_traces(plan, trace, [slowed(trace, 1.25)])))
    for phrase in ("simulated", "real", "error", "iteration_s", "-20.0%", "forward", "pipeline", "gradients"):
        assert phrase in text
    assert "usd_per_iteration" not in text
