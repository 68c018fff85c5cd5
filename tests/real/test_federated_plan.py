"""A federated plan for real: shaped links, and a span for each task on both of its ranks."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from real.backend import RealBackend
from real.federated import shaping
from real.federated.ports import free_ports
from real.federated.shaping import PIECE_B, Bucket, Pieces, Relays, Route, Way
from real.federated.variations import VARIATIONS
from real.workloads.federated_moe import lacking
from simcore.api import plan as make_plan
from simcore.api import run as simulate_scenario
from simcore.plan import Plan, Transfer
from simcore.scenario import Scenario, load
from tests.golden.reports import CATALOG, ROOT

SCENARIO = """\
name: three
cluster:
  topology: federated
  clients: [{device: laptop_cpu, count: 3, down: home, up: home_up}]
  server: {device: server_cpu, down: ethernet_1g}
workload:
  name: federated_moe
  model: {image: [1, 8, 8], channels: [8, 16], width: 8, experts: 3, hidden: 16}
  samples: 64
  rounds: 2
  gate_noise: 1.0
  dense: true
planner: {name: NAME}
"""


def scenario(folder: Path, planner: str) -> Scenario:
    path = folder / "three.yaml"
    path.write_text(SCENARIO.replace("NAME", planner))
    return load(path)


def test_a_bucket_lets_through_its_rate_and_saves_nothing_up() -> None:
    bucket = Bucket(100.0)
    assert [bucket.take(50, 0.0), bucket.take(50, 0.0)] == pytest.approx([0.5, 1.0])
    assert bucket.take(50, 7.0) == pytest.approx(7.5)


def test_flows_over_a_full_link_take_turns() -> None:
    shared, own = Bucket(100.0), Bucket(25.0)
    ends: dict[str, list[float]] = {"slow": [], "fast": []}
    ask = {"slow": 0.0, "fast": 0.0}
    for _ in range(500):
        name = min(ask, key=lambda n: ask[n])
        others = [own.take(10, ask[name])] if name == "slow" else []
        ask[name] = max(shared.take(10, ask[name]), *others, 0.0)
        ends[name].append(ask[name])
    end = min(e[-1] for e in ends.values())
    got = {name: 10 * sum(t <= end for t in times) / end for name, times in ends.items()}
    assert got["slow"] == pytest.approx(25.0, rel=0.05)
    assert got["fast"] == pytest.approx(75.0, rel=0.05)


def test_a_process_that_wakes_late_costs_a_flow_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that wait go one after the other at the bucket's rate, and pieces that come later no sooner than they come."""
    sleep = asyncio.sleep
    monkeypatch.setattr(shaping.asyncio, "sleep", lambda s: sleep(max(s, 0.0) + 0.003))

    async def play() -> list[float]:
        came: Pieces = asyncio.Queue()
        late: Pieces = asyncio.Queue()
        for at_s in (1.0, 1.0, 1.0, 7.0):
            came.put_nowait((at_s, bytes(100)))
        came.put_nowait((7.0, b""))
        await shaping._meter(came, late, Way(buckets=(Bucket(100_000.0),), latency_s=0.25))
        return [late.get_nowait()[0] for _ in range(4)]

    assert asyncio.run(play()) == pytest.approx([1.251, 1.252, 1.253, 7.251])


def test_relays_pass_bytes_on_unchanged_both_ways() -> None:
    data = bytes(range(256)) * 1024

    async def play() -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(len(data)))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        target = server.sockets[0].getsockname()[1]
        (port,) = free_ports(1)
        route = Route(port=port, target=("127.0.0.1", target), there=(0,), back=(1,), there_s=0.001, back_s=0.002)
        relays = Relays([4e6, 8e6], [route])
        await relays.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        found = await reader.readexactly(len(data))
        assert await reader.read(1) == b""
        writer.close()
        await relays.close()
        server.close()
        return found

    assert len(data) > 4 * PIECE_B
    assert asyncio.run(play()) == data


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"optimizer": "adamw"}, "workload.optimizer"),
        ({"dense": False}, "workload.dense"),
        ({"model": {"image": [3, 32, 32], "classes": 100}}, "workload.model.image"),
    ],
)
def test_what_cannot_run_is_said(tmp_path: Path, change: Mapping[str, object], field: str) -> None:
    planned = make_plan(scenario(tmp_path, "fedmoe_da, P: 2"))
    assert lacking(planned) == []
    found = lacking(replace(planned, workload={**planned.workload, **change}))
    assert field in [p.field for p in found]


@pytest.mark.parametrize(("name", "overrides"), VARIATIONS, ids=[name for name, _ in VARIATIONS])
def test_every_variation_can_run(name: str, overrides: tuple[str, ...]) -> None:
    given = load(ROOT / "scenarios" / "fedmoe_this_machine.yaml", overrides, [CATALOG])
    planned = make_plan(given)
    assert lacking(planned) == []
    assert len(planned.decisions["flows"]) > 0 or planned.decisions["bytes"]["server up"] > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("planner", ["fedmoe_da, P: 2", "gossip, share: 0.5"])
def test_every_task_runs_on_its_ranks(tmp_path: Path, planner: str) -> None:
    given = scenario(tmp_path, planner)
    planned: Plan = make_plan(given)
    trace = RealBackend.from_scenario(given).run(planned)
    ran = {(s.task, s.iteration, s.lane) for s in trace.spans()}
    rank = {name: int(group.ranks().reshape(-1)[0]) for name, group in planned.groups.items()}
    for task in planned.tasks:
        ends = [task.op.source, task.op.target] if isinstance(task.op, Transfer) else [task.op.group]  # type: ignore[union-attr]
        for iteration in range(2):
            for end in ends:
                if task.id.startswith(("aggregate", "mix")):  # may be over in less than a clock can tell
                    continue
                assert (task.id, iteration, rank[end]) in ran
    assert (trace.end_s >= trace.start_s).all()
    by_task = {(s.task, s.iteration): s for s in trace.spans()}
    for task in planned.tasks:
        for before in task.after:
            if (before, 0) in by_task and (task.id, 0) in by_task:
                assert by_task[task.id, 0].end_s >= by_task[before, 0].start_s
    assert simulate_scenario(given, plan=planned).trace.plan_digest == trace.plan_digest
