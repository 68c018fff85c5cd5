"""Costs at another pace than when they were measured: of computing, of nothing else."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from costmodels.specs import DeviceSpec
from real import variations
from real.pace import Pace, Slower, at_pace, usual
from real.variations import chosen, in_turn, usual_pace
from simcore.errors import InputError
from simcore.plan import Plan
from simcore.scenario import Scenario, load
from simcore.sim import SimBackend
from simcore.trace import Trace
from tests.golden.reports import CATALOG, ROOT

EAGER = {
    "step_s": 1.0,
    "layer_s": 2.0,
    "split_layer_s": 3.0,
    "split_forward_s": 0.5,
    "split_backward_s": 0.25,
    "products": [[1, 4.0], [8, 6.0]],
    "cache": [[10, 1.0]],
    "all_reduce": {2: [[4, 1.0], [8, 2.0]]},
    "draw_s": 1.5,
    "in_step": 1.25,
    "element_s": 0.5,
    "call": [[100, 2.0]],
    "alone": {"step_s": 0.5, "products": [[1, 2.0], [8, 3.0]], "kernels": 0.75, "in_step": 1.125},
}
KERNELS = {"add": [[8, 8, 1.0]], "adamw": [[1000, 2.0]]}
QUICKSTART = ROOT / "scenarios" / "quickstart.yaml"


def changed(slower: Slower) -> DeviceSpec:
    cluster = load(QUICKSTART, (), [CATALOG]).cluster()
    measured = {"kernels": KERNELS, "in_model": 1.5, "module_s": 1e-4, "eager": EAGER, "spread": 0.1}
    return at_pace(replace(cluster, devices=(replace(cluster.device(0), measured=measured),)), slower).devices[0]


def test_whole_passes_take_as_much_longer() -> None:
    found = changed(Slower(passes=2.0))
    kernels = {"add": [[8, 8, 1.0]], "adamw": [[1000, 4.0]]}
    assert found.measured == {"kernels": kernels, "in_model": 3.0, "module_s": 2e-4, "eager": EAGER, "spread": 0.1}


def test_seconds_of_steps_take_as_much_longer_and_shares_stay() -> None:
    measured: Any = changed(Slower(steps=2.0)).measured
    eager = measured["eager"]
    assert (measured["in_model"], measured["module_s"]) == (1.5, 1e-4)
    assert [eager[name] for name in ("step_s", "layer_s", "split_layer_s", "draw_s", "element_s")] == [
        2.0,
        4.0,
        6.0,
        3.0,
        1.0,
    ]
    assert (eager["split_forward_s"], eager["split_backward_s"], eager["in_step"]) == (1.0, 0.5, 1.25)
    assert (eager["products"], eager["cache"], eager["call"]) == ([[1, 8.0], [8, 12.0]], [[10, 2.0]], [[100, 4.0]])
    assert eager["all_reduce"] == {2: [[4, 2.0], [8, 4.0]]}
    assert eager["alone"] == {"step_s": 1.0, "products": [[1, 4.0], [8, 6.0]], "kernels": 0.75, "in_step": 1.125}
    assert eager.keys() == EAGER.keys()


def test_an_iteration_takes_as_much_longer_as_its_computing() -> None:
    scenario = load(QUICKSTART, (), [CATALOG])
    plan, simulator = scenario.plan(), SimBackend.from_scenario(scenario)
    kernels = {"gemm": [[n, n, n, 1e-8 * n**2] for n in (64, 128, 256, 512, 1024)]}
    devices = tuple(replace(device, measured={"kernels": kernels}) for device in simulator.cluster.devices)
    simulator = simulator.on(replace(simulator.cluster, devices=devices))
    there = simulator.on(at_pace(simulator.cluster, Slower(passes=1.2)))
    known, slower = (float(backend.run(plan).end_s.max()) for backend in (simulator, there))
    assert 1.05 < slower / known < 1.2


def test_paces_are_averaged_as_ratios() -> None:
    both = [Pace(pass_s=1.0, step_s=2.0), Pace(pass_s=4.0, step_s=8.0)]
    assert Pace.of([1.0, 4.0], [8.0, 2.0, 4.0]) == Pace(pass_s=pytest.approx(2.0), step_s=pytest.approx(4.0))
    slower = Slower.than(both[0], Pace.between(both))
    assert (slower.passes, slower.steps) == (pytest.approx(2.0), pytest.approx(2.0))


def test_a_calibration_that_does_not_know_its_pace_is_refused() -> None:
    device = load(QUICKSTART, (), [CATALOG]).cluster().device(0)
    assert usual(replace(device, measured={})) is None
    known = replace(device, measured={"pace": {"pass_s": 1.0, "step_s": 2.0}})
    assert usual(known) == Pace(pass_s=1.0, step_s=2.0)
    with pytest.raises(InputError, match="calibrate"):
        usual_pace(load(QUICKSTART, (), [CATALOG]))


def test_variations_that_do_not_exist_are_refused_all_at_once() -> None:
    assert list(chosen((), ("a", "b"))) == ["a", "b"]
    assert list(chosen(("b",), ("a", "b"))) == ["b"]
    with pytest.raises(InputError) as caught:
        chosen(("b", "c", "d"), ("a", "b"))
    assert [problem.given for problem in caught.value.problems] == ["'c'", "'d'"]


def test_variations_run_in_turn_and_each_round_has_one_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    class Machine:
        def __init__(self, scenario: Scenario) -> None:
            self.scenario = scenario

        def run(self, plan: Plan) -> Trace:
            ran.append(int(plan.workload["seq_len"]))
            return replace(SimBackend.from_scenario(self.scenario).run(plan), backend="real")

    probes = iter([1.0, 2.0, 8.0])
    monkeypatch.setattr(variations, "open_backend", lambda _, scenario: Machine(scenario))
    monkeypatch.setattr(variations, "load", lambda path, overrides: load(path, overrides, [CATALOG]))
    monkeypatch.setattr(variations, "usual_pace", lambda _: Pace(pass_s=1.0, step_s=1.0))
    monkeypatch.setattr(variations, "probe", lambda: Pace(pass_s=next(probes), step_s=1.0))
    rows = variations.measure(QUICKSTART, 2, variations=(("long", ("workload.seq_len=256",)), ("short", ())))
    assert ran == [256, 128, 256, 128]
    assert [row["variation"] for row in rows] == ["long", "short"]
    assert [row["passes"] for row in rows] == pytest.approx(2 * [(1 * 2 * 2 * 8) ** 0.25])
    assert all(row["as_calibrated"] == pytest.approx(0.0) for row in rows)


@dataclass(frozen=True)
class Paced:
    """A simulator that takes `factor` times as long."""

    inner: SimBackend
    factor: float = 1.0

    @classmethod
    def from_scenario(cls, scenario: Scenario) -> "Paced":
        return cls(SimBackend.from_scenario(scenario))

    @property
    def cluster(self) -> None:
        """Of no matter here."""

    def on(self, factor: float) -> "Paced":
        return replace(self, factor=factor)

    def run(self, plan: Plan) -> Trace:
        found = self.inner.run(plan)
        return replace(found, start_s=found.start_s * self.factor, end_s=found.end_s * self.factor)


def test_what_runs_took_is_put_down_at_the_usual_pace_and_one_that_nothing_explains_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two runs at half the pace took twice as long, and one at the usual pace took three times as long."""
    monkeypatch.setattr(variations, "SimBackend", Paced)
    monkeypatch.setattr(variations, "at_pace", lambda _, slower: slower.passes)
    scenario = load(QUICKSTART, (), [CATALOG])
    plan, simulator = scenario.plan(), Paced.from_scenario(scenario)
    runs = [replace(simulator.on(factor).run(plan), backend="real") for factor in (2.0, 3.0, 2.0)]
    paces = [Pace(pass_s=factor, step_s=1.0) for factor in (2.0, 1.0, 2.0)]
    played = variations.Played(name="one", scenario=scenario, plan=plan, runs=runs, paces=paces)
    row = played.row_at_pace(Pace(pass_s=1.0, step_s=1.0))
    assert row["measured"] == pytest.approx(row["simulated"])
    assert (row["error"], row["as_calibrated"]) == (pytest.approx(0.0), pytest.approx(-0.5))
    assert row["at_pace_s"] == pytest.approx([row["simulated"] * factor for factor in (1.0, 3.0, 1.0)])
    assert row["as_measured"] == pytest.approx(2 * row["simulated"])


def test_variations_run_in_turn_and_say_how_far_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Named:
        name: str

    named = [Named("a"), Named("b")]
    assert [one.name for one in in_turn(named, 2)] == ["a", "b", "a", "b"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "1 of 4: a"
    assert said[3].startswith("4 of 4: b, about 0 s left")
