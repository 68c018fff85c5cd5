"""Processes that share the cores of one machine: closed forms of processor sharing, and what is not modelled is refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from simcore.cost import CostModel
from simcore.engine.simulate import simulate
from simcore.errors import PlanError, ScenarioError
from simcore.faults import Event
from simcore.federated.running import federation_of
from simcore.plan import Compute, Group, Plan, Task, Transfer
from simcore.scenario import Scenario, load

SCENARIO = """\
name: one machine
cluster:
  topology: federated
  clients: [{device: laptop_cpu, count: 6, down: home, up: home_up}]
  server: {device: laptop_cpu, down: ethernet_1g}
workload: {name: federated_moe, model: {width: 8, experts: 2, hidden: 8}, samples: 64}
planner: {name: local_only}
"""


def scenario(folder: Path, *overrides: str) -> Scenario:
    path = folder / "one.yaml"
    path.write_text(SCENARIO)
    return load(path, overrides)


def ends_s(given: Scenario, plan: Plan, **how: object) -> dict[str, float]:
    trace = simulate(plan, given.cluster(), given.cost(), **how)  # type: ignore[arg-type]
    return {plan.tasks[t].id: float(end) for t, end in zip(trace.task, trace.end_s, strict=True)}


@pytest.mark.parametrize("cores", [1, 2, 4, 6, 16])
def test_equal_clients_take_as_long_as_there_are_too_few_cores(tmp_path: Path, cores: int) -> None:
    alone, shared = scenario(tmp_path), scenario(tmp_path, f"cluster.cores={cores}")
    plan = alone.plan()
    own, together = ends_s(alone, plan), ends_s(shared, plan)
    assert together == pytest.approx({task: end * max(6 / cores, 1.0) for task, end in own.items()})
    assert ends_s(shared, plan, expand=True) == pytest.approx(together)


def test_who_has_less_to_do_leaves_the_cores_to_the_others(tmp_path: Path) -> None:
    """One core, work of 1, 2 and 3: 1 is done at 3, 2 at 5 and 3 at 6 (processor sharing)."""
    given = scenario(tmp_path, "cluster.cores=1")
    unit = given.plan().tasks[0].op
    assert isinstance(unit, Compute)
    second_s = CostModel(given.cluster()).compute(unit, given.cluster().device(0)).seconds
    tasks = tuple(
        Task(id=f"work {c}", op=Compute(group=f"client {c}", kernels=unit.kernels * (c + 1)), after=())
        for c in range(3)
    )
    groups = {f"client {c}": Group(axes=(("one", 1, 1),), offset=c) for c in range(3)}
    plan = Plan(name="three", n_ranks=7, groups=groups, tasks=tasks, decisions={}, workload={}, memory_B={})
    found = ends_s(given, plan)
    assert found == pytest.approx({"work 0": 3 * second_s, "work 1": 5 * second_s, "work 2": 6 * second_s})


def test_what_is_not_modelled_is_refused(tmp_path: Path) -> None:
    given = scenario(tmp_path, "cluster.cores=2")
    plan = given.plan()
    with pytest.raises(PlanError, match="fifo"):
        ends_s(given, plan, sharing="fifo")
    with pytest.raises(PlanError, match="computes slower"):
        ends_s(given, plan, faults=[Event(at_s=0.0, factor=0.5, ranks=(1,))])
    with pytest.raises(ScenarioError, match=r"cluster\.cores"):
        federation_of(given)


def test_a_machine_that_was_measured_says_what_sharing_costs(tmp_path: Path) -> None:
    (tmp_path / "catalog" / "devices").mkdir(parents=True)
    built_in = Path(__file__).resolve().parents[2] / "costmodels" / "devices" / "laptop_cpu.yaml"
    entry = yaml.safe_load(built_in.read_text())
    entry["measured"] = {**entry.get("measured", {}), "sharing": 1.5}
    (tmp_path / "catalog" / "devices" / "laptop_cpu.yaml").write_text(yaml.safe_dump(entry))
    plain = scenario(tmp_path, "cluster.cores=2")
    measured = load(tmp_path / "one.yaml", ["cluster.cores=2"], [tmp_path / "catalog"])
    plan = plain.plan()
    assert ends_s(measured, plan) == pytest.approx({t: 1.5 * end for t, end in ends_s(plain, plan).items()})


def test_what_was_measured_on_one_link_does_not_count_for_two_different_ones(tmp_path: Path) -> None:
    """From a server on a calibrated link a client behind a slow one gets no more than its link carries."""
    (tmp_path / "catalog" / "links").mkdir(parents=True)
    fast = {
        "title": "Between processes",
        "kind": "loopback",
        **{
            n: {"value": v, "source": "assumption: for a test"}
            for n, v in (("B_per_s", 4e9), ("latency_s", 1e-4), ("efficiency", 1.0))
        },
        "measured": {"send_recv": {2: [[8, 1e-4], [1_000_000, 5e-4]]}},
    }
    (tmp_path / "catalog" / "links" / "fast.yaml").write_text(yaml.safe_dump(fast))
    scenario(tmp_path)
    given = load(tmp_path / "one.yaml", ["cluster.server.down=fast"], [tmp_path / "catalog"])
    server, client = given.cluster().n_ranks - 1, 0
    op = Transfer(source="server", target="client", nbytes=1_000_000)
    (demand,) = CostModel(given.cluster()).demands(op, np.array([[server, client]]))
    down = int(given.cluster().fabric.net_ports(np.array([client]))[1][0])
    assert demand.cap_B_per_s == given.cluster().fabric.capacity_B_per_s[down]
    assert demand.volume_B == 1_000_000
