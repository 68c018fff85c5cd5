"""Trace files: what Perfetto needs is there, and what we need comes back exactly."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from simcore.engine.simulate import simulate
from simcore.errors import InputError
from simcore.plan import Group, Plan, Task
from simcore.reporting.perfetto import COLUMNS, TEXTS, read_trace, write_trace
from simcore.trace import Trace
from tests.laws.worlds import PlainCost, cluster
from tests.unit.toys import plan_of, reduce_over, relay, trace_of


def simulated() -> tuple[Plan, Trace]:
    plan, world = relay(3), cluster(3)
    return plan, simulate(plan, world, PlainCost(world, latency_s=1 / 3))


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_comes_back_exactly(tmp_path: Path, name: str) -> None:
    plan, trace = simulated()
    write_trace(tmp_path / name, trace, plan)
    back = read_trace(tmp_path / name)
    for column in COLUMNS:
        assert np.array_equal(getattr(back, column), getattr(trace, column))
        assert getattr(back, column).dtype == getattr(trace, column).dtype
    for text in TEXTS:
        assert json.dumps(getattr(back, text)) == json.dumps(getattr(trace, text))
    assert back.lanes == trace.lanes
    assert back.incomplete == trace.incomplete


def test_the_same_trace_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.json.gz", "b.json.gz"):
        plan, trace = simulated()
        write_trace(tmp_path / name, trace, plan)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_lanes_are_processes_and_streams_threads(tmp_path: Path) -> None:
    plan, trace = simulated()
    write_trace(tmp_path / "t.json.gz", trace, plan)
    events = json.loads(gzip.decompress((tmp_path / "t.json.gz").read_bytes()))["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == len(trace)
    assert processes == {i: f"{lane.label} ({lane.device})" for i, lane in enumerate(trace.lanes)}
    first = spans[0]
    assert (first["name"], first["cat"], first["ts"], first["dur"]) == ("m0/s0c0/fwd", "forward", 0.0, 2e6)
    assert threads[(first["pid"], first["tid"])] == "compute"
    assert first["args"] == {"iteration": 0, "nbytes": 0}


def test_spans_that_overlap_on_a_stream_get_threads_of_their_own(tmp_path: Path) -> None:
    plan = plan_of([Task(t, reduce_over("all", "all")) for t in "abc"], {"all": Group.listed([0])}, 1)
    write_trace(tmp_path / "t.json", trace_of(plan, [("a", 0, 0, 3), ("b", 0, 1, 2), ("c", 0, 3, 4)]), plan)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {e["name"]: threads[e["tid"]] for e in events if e["ph"] == "X"} == {
        "a": "grad",
        "b": "grad (2)",
        "c": "grad",
    }


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\x1f\x8b rubbish", b'{"windtunnel": {"format": 99}}', b"\xff"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert caught.value.problems[0].field == str(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_trace(tmp_path / "none.json")
