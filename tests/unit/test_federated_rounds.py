"""Rounds of federated training: the engine's plan and the player of many rounds agree, and what breaks is left out and named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.errors import PlanError, ScenarioError
from simcore.federated.aggregation import domain_aware
from simcore.federated.hub import shared
from simcore.federated.outcome import Outcome, Rules, frame
from simcore.federated.running import Federation
from simcore.scenario import Scenario, load

SCENARIO = """\
name: toy
seed: 3
cluster:
  topology: federated
  clients:
    - {device: laptop_cpu, count: 5, down: home, up: home_up, region: north}
    - {device: phone, count: 4, down: 5g, up: 5g_up, region: south}
    - {device: jetson_orin, count: 3, down: lte, up: lte_up, region: south}
  server: {device: server_cpu, down: ethernet_1g, region: north}
  distances:
    - {regions: [north, south], link: wan_ocean}
workload:
  name: federated_moe
  model: {width: 16, experts: 4, hidden: 32, channels: [4]}
  samples: 200
  spread: 0.4
  gate_noise: 1.0
planner: {name: fedmoe_da, P: 3}
"""
SYSTEMS = {
    "fedmoe_da": ["planner.name=fedmoe_da"],
    "nothing fetched": ["planner.name=fedmoe_da", "planner.P=0"],
    "relays": ["planner.name=fedmoe_da", "planner.relays=true"],
    "price": ["planner.name=fedmoe_da", "planner.price=0.5"],
    "fedavg": ["planner.name=fedavg"],
    "fedprox": ["planner.name=fedprox"],
    "expert_averaging": ["planner.name=expert_averaging"],
    "local_only": ["planner.name=local_only"],
    "gossip": ["planner.name=gossip", "planner.neighbours=2"],
    "saps": ["planner.name=saps"],
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(SCENARIO)
    return path


def written(path: Path, system: str, extra: str = "") -> Scenario:
    """The scenario with another planner; `extra` lines go to its workload."""
    base = path.read_text().replace("planner: {name: fedmoe_da, P: 3}\n", "")
    fields = dict(part.removeprefix("planner.").split("=") for part in SYSTEMS[system])
    if fields["name"] == "fedmoe_da":
        fields.setdefault("P", "3")
    planner = ", ".join(f"{k}: {v}" for k, v in fields.items())
    changed = path.with_name(f"{system}.yaml")
    changed.write_text(f"{base}{extra}planner: {{{planner}}}\n")
    return load(changed)


def federation(scenario: Scenario, rules: Rules | None = None) -> Federation:
    planner = scenario.sections["planner"]
    return Federation(
        scenario.workload(), scenario.cluster(), scenario.cost(), planner.module.strategy(planner.params), rules
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_round_takes_as_long_as_its_plan_on_the_engine(toy: Path, system: str) -> None:
    scenario = written(toy, system)
    plan = scenario.plan()
    trace = simulate(plan, scenario.cluster(), CostModel(scenario.cluster()))
    assert not trace.incomplete
    found = federation(scenario).round()
    assert found.seconds == pytest.approx(trace.makespan_s, rel=1e-9)
    sent = plan.decisions["bytes"]
    assert (found.server_up_B, found.server_down_B, found.peer_B) == (
        sent["server up"],
        sent["server down"],
        sent["peers"],
    )
    moved = sum(t.op.nbytes for t in plan.tasks if hasattr(t.op, "source"))
    assert moved == found.server_up_B + found.server_down_B + found.peer_B


def test_the_server_sees_a_small_part_of_what_averaging_sends(toy: Path) -> None:
    ours, theirs = federation(written(toy, "fedmoe_da")).round(), federation(written(toy, "fedavg")).round()
    shape = load(toy).workload().shape
    assert theirs.server_up_B == theirs.server_down_B == 12 * shape.elements * 4
    assert ours.server_up_B == 12 * 4 * (shape.embedding_elements + shape.gate_elements)
    assert theirs.peer_B == 0


def test_relays_send_the_same_experts_sooner(toy: Path) -> None:
    """One expert that everybody wants: its owner's uplink is the bottleneck unless others hand it on."""
    text = (
        toy.read_text()
        .replace("domains", "domains")
        .replace("  gate_noise: 1.0\n", "  gate_noise: 0.3\n  domains: 1\n")
    )
    toy.write_text(text.replace("experts: 4, hidden: 32", "experts: 4, hidden: 4096"))
    owners, relayed = federation(written(toy, "fedmoe_da")).round(), federation(written(toy, "relays")).round()
    assert relayed.peer_B == owners.peer_B
    assert np.array_equal(relayed.mixing.dense(), owners.mixing.dense())
    assert relayed.seconds < owners.seconds


def test_trading_similarity_for_time(toy: Path) -> None:
    toy.write_text(toy.read_text().replace("experts: 4, hidden: 32", "experts: 4, hidden: 4096"))
    owners, traded = federation(written(toy, "fedmoe_da")).round(), federation(written(toy, "price")).round()
    assert traded.seconds < owners.seconds
    assert traded.cosine < owners.cosine


def test_a_matrix_is_kept_for_as_many_rounds_as_asked(toy: Path) -> None:
    toy.write_text(toy.read_text().replace("P: 3}", "P: 3, every: 3}"))
    scenario = load(toy)
    found = list(federation(scenario).rounds(7))
    assert [o.refreshed for o in found] == [True, False, False, True, False, False, True]
    assert np.array_equal(found[0].mixing.dense(), found[2].mixing.dense())
    assert not np.array_equal(found[0].mixing.dense(), found[3].mixing.dense())
    parts = scenario.workload().shape.parts
    assert found[0].server_up_B - found[1].server_up_B == 12 * parts.gate_B
    assert found[1].begins_s == found[0].seconds


def test_a_client_that_dies_while_it_trains_is_named_and_left_out(toy: Path) -> None:
    whole = federation(written(toy, "fedmoe_da")).round()
    found = federation(written(toy, "fedmoe_da", "  faults: [{kind: killed, client: 3, round: 0, at: 1 ms}]\n")).round()
    assert found.left == (3,)
    assert found.there == whole.there - 1
    assert np.array_equal(found.mixing.dense()[12:16], np.eye(48)[12:16])  # its own experts stay as they are
    assert found.mixing.dense()[:, 12:16].sum() == 4.0


@pytest.mark.parametrize("kind", ["killed", "stalls"])
def test_a_peer_that_stops_while_others_fetch_is_named_and_the_round_ends(toy: Path, kind: str) -> None:
    whole = federation(written(toy, "fedmoe_da")).round()
    at = whole.trained_s + 0.2 * (whole.seconds - whole.trained_s)
    scenario = written(toy, "fedmoe_da", f"  faults: [{{kind: {kind}, client: 7, round: 0, at: {at} s}}]\n")
    rules = Rules(deadline_s=60.0, peer_timeout_s=30.0)
    found = federation(scenario, rules).round()
    assert found.unheard == (7,)
    assert found.there == whole.there
    assert found.mixing.dense().sum(axis=1) == pytest.approx(np.ones(48))
    if kind == "stalls":
        assert found.seconds == pytest.approx(found.trained_s + 30.0, rel=1e-3)
    else:
        assert found.seconds < 30.0


def test_garbage_is_refused_after_it_came(toy: Path) -> None:
    scenario = written(toy, "fedmoe_da", "  faults: [{kind: garbage, client: 0, round: 0}]\n")
    whole, found = federation(written(toy, "fedmoe_da")).round(), federation(scenario).round()
    assert found.seconds == whole.seconds
    assert found.peer_B == whole.peer_B
    assert found.unheard == (0,)
    others = found.mixing.dense()[4:, :4]
    assert not others.any()


def test_a_fault_strikes_in_its_round_only(toy: Path) -> None:
    scenario = written(toy, "fedmoe_da", "  faults: [{kind: killed, client: 3, round: 1}]\n")
    assert [o.there for o in federation(scenario).rounds(3)] == [12, 11, 12]


def test_who_is_too_late_does_not_count(toy: Path) -> None:
    whole = federation(written(toy, "fedmoe_da")).round()
    half = federation(load(toy), Rules(quorum=0.5)).round()
    assert half.there in (6, 7)  # two may answer at the same time
    assert half.there + len(half.late) == 12
    assert half.trained_s == whole.trained_s
    assert half.seconds < whole.seconds
    timed = federation(load(toy), Rules(deadline_s=0.9 * whole.trained_s)).round()
    assert 0 < timed.there < 12
    assert timed.there + len(timed.late) == 12


def test_dropouts_and_availability_are_drawn_and_repeat(toy: Path) -> None:
    extra = "  dropout: 0.3\n  availability: {period: 2 s, online: 0.6}\n  clients_per_round: 6\n"
    scenario = written(toy, "fedmoe_da", extra)
    found = list(federation(scenario).rounds(12))
    table = frame(found)
    again = frame(list(federation(scenario).rounds(12)))
    assert table.equals(again)
    assert table.chosen.max() == 6
    assert table.left.sum() > 0
    assert (table.there + table.left + table.late == table.chosen).all()
    assert all(o.mixing.dense().sum(axis=1) == pytest.approx(np.ones(48)) for o in found)


def test_no_client_at_all_is_a_round_that_takes_no_time(toy: Path) -> None:
    scenario = written(
        toy,
        "fedmoe_da",
        "  faults: [" + "".join(f"{{kind: killed, client: {c}, round: 0}}, " for c in range(12)) + "]\n",
    )
    found = federation(scenario).round()
    assert found.there == 0
    assert isinstance(found, Outcome)
    assert found.seconds >= 0.0


def test_faults_that_never_end_are_refused(toy: Path) -> None:
    scenario = written(toy, "fedmoe_da", "  faults: [{kind: stalls, client: 40, round: 0}]\n")
    with pytest.raises(ScenarioError) as caught:
        federation(scenario)
    assert [p.field for p in caught.value.problems] == ["workload.faults.0.client", "workload.faults.0"]


def test_gates_from_a_file(toy: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((12, 4, 16)).astype(np.float32)
    np.save(toy.parent / "gates.npy", vectors)
    scenario = written(toy, "fedmoe_da", "  gates: gates.npy\n")
    assert np.array_equal(federation(scenario).round().mixing.dense(), domain_aware(vectors, 3, 1.0).dense())
    np.save(toy.parent / "gates.npy", vectors[:, :3])
    with pytest.raises(ScenarioError, match=r"workload\.gates"):
        load(scenario.path)


def test_another_workload_and_too_large_a_round_are_refused(toy: Path) -> None:
    toy.write_text(toy.read_text().replace("count: 5", "count: 5000"))
    with pytest.raises(PlanError, match="windtunnel rounds"):
        load(toy).plan()


def test_distances_between_places_where_nobody_is(toy: Path) -> None:
    toy.write_text(toy.read_text().replace("[north, south]", "[north, sooth]"))
    with pytest.raises(ScenarioError, match="Did you mean south"):
        load(toy)


@pytest.mark.parametrize("link", ["lte_up", "home"])
def test_a_server_whose_link_is_full_shares_it_as_the_engine_does(toy: Path, link: str) -> None:
    toy.write_text(toy.read_text().replace("down: ethernet_1g", f"down: {link}").replace("P: 3}", "P: 1}"))
    scenario = load(toy)
    trace = simulate(scenario.plan(), scenario.cluster(), CostModel(scenario.cluster()))
    assert federation(scenario).round().seconds == pytest.approx(trace.makespan_s, rel=1e-9)


@given(st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_flows_over_one_link_fill_it_fairly(n: int, seed: int) -> None:
    """Against a clock that recomputes every rate at every event."""
    rng = np.random.default_rng(seed)
    cap, size = rng.integers(1, 4, n).astype(float), rng.integers(0, 9, n).astype(float)
    start, gone = (
        rng.integers(0, 5, n).astype(float),
        np.where(rng.random(n) < 0.3, rng.integers(0, 9, n) + 0.37, np.inf),
    )
    capacity = float(rng.integers(1, 8))
    assert shared(capacity, cap, start, size, gone) == pytest.approx(
        slowly(capacity, cap, start, size, gone), rel=1e-9, nan_ok=True
    )


def slowly(capacity: float, cap: np.ndarray, start: np.ndarray, size: np.ndarray, gone: np.ndarray) -> np.ndarray:
    left, end, now = size.copy(), np.full(len(cap), np.nan), 0.0
    while True:
        going = [f for f in range(len(cap)) if start[f] <= now and np.isnan(end[f]) and gone[f] > now]
        rate, free = {}, capacity
        for place, f in enumerate(sorted(going, key=lambda f: cap[f])):
            rate[f] = min(cap[f], free / (len(going) - place))
            free -= rate[f]
        events = [now + left[f] / rate[f] for f in going]
        events += [t for t in (*start, *gone) if t > now and np.isfinite(t)]
        if not events:
            return end
        then = min(events)
        for f in going:
            left[f] -= rate[f] * (then - now)
            if left[f] <= 1e-12:
                end[f] = then
        now = then
