"""The picture of a trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from simcore.engine.simulate import simulate
from simcore.plan import Group, Task
from simcore.reporting.timeline import chosen_lanes, draw, picture
from tests.laws.worlds import PlainCost, cluster
from tests.unit.toys import compute, plan_of, relay, trace_of


def test_lanes_are_chosen_evenly() -> None:
    assert chosen_lanes(3, 8) == [0, 1, 2]
    assert chosen_lanes(100, 4) == [0, 33, 66, 99]


def test_rows_are_streams_and_colours_are_parts() -> None:
    plan, world = relay(3), cluster(3)
    figure = picture(plan, simulate(plan, world, PlainCost(world)))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:3] == ["rank 0   compute", "p2p", "grad"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["forward", "pipeline", "gradients"]


def test_it_says_what_it_leaves_out() -> None:
    plan, world = relay(20), cluster(20)
    figure = picture(plan, simulate(plan, world, PlainCost(world), iterations=5))
    said = figure.axes[0].get_title(loc="right")
    assert "8 of 20 kinds of ranks" in said
    assert "the first 2 of 5 iterations" in said


def test_the_axis_is_in_a_unit_that_suits() -> None:
    plan = plan_of([Task("a", compute("all"))], {"all": Group.listed([0])}, 1)
    for end_s, unit in ((2.0, "s"), (2e-3, "ms"), (2e-6, "us"), (2e-9, "ns")):
        assert f"({unit})" in picture(plan, trace_of(plan, [("a", 0, 0.0, end_s)])).axes[0].get_xlabel()


def test_the_same_trace_is_the_same_picture(tmp_path: Path) -> None:
    plan, world = relay(3), cluster(3)
    trace = simulate(plan, world, PlainCost(world))
    draw(plan, trace, tmp_path / "a.png")
    draw(plan, trace, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_an_empty_trace_is_an_empty_picture(tmp_path: Path) -> None:
    plan = relay(2)
    draw(plan, trace_of(plan, []), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_streams_that_nobody_could_see_are_left_out_and_named() -> None:
    tasks = [Task("m0/fwd", compute("all")), Task("send1", compute("all", stream="to stage12"))]
    plan = plan_of(tasks, {"all": Group.listed([0])}, 1)
    figure = picture(plan, trace_of(plan, [("m0/fwd", 0, 0.0, 1.0), ("send1", 0, 0.2, 0.209)]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["rank 0   compute"]
    assert figure.axes[0].get_title(loc="right") == "without to stage* (below 1%)"


def test_thin_spans_next_to_each_other_are_one_and_none_is_too_thin_to_see() -> None:
    plan = plan_of([Task("m0/fwd", compute("all"))], {"all": Group.listed([0])}, 1)
    rows = [("m0/fwd", 0, 0.0, 0.4), ("m0/fwd", 0, 0.40001, 0.5), ("m0/fwd", 0, 0.9, 0.90001), ("m0/fwd", 0, 0.99, 1.0)]
    (bars,) = picture(plan, trace_of(plan, rows)).axes[0].collections
    found = [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in bars.get_paths()]
    assert np.allclose(found, [(0.0, 0.5), (0.9, 0.9005), (0.99, 1.0)])


def test_rlhf_is_told_by_calls_and_every_pool_is_seen() -> None:
    groups = {"first": Group.listed(range(9)), "last": Group.listed([9])}
    tasks = [Task("generate/r0/decode", compute("first")), Task("values/m0/s0/fwd", compute("last"))]
    pools = [
        {"first_rank": 0, "ranks": 9, "models": {"actor": {}, "reward": {}}},
        {"first_rank": 9, "ranks": 1, "models": {"critic": {}}},
    ]
    decisions = {"calls": [{"name": "generate"}, {"name": "values"}], "pools": pools}
    plan = replace(plan_of(tasks, groups, 10), decisions=decisions)
    rows = [(tasks[0].id, rank, 0.0, 1.0 + rank) for rank in range(9)] + [(tasks[1].id, 9, 1.0, 2.0)]
    figure = picture(plan, trace_of(plan, rows), lanes=4)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["rank 0   compute", "rank 8   compute", "rank 9   compute"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["actor, reward", "actor, reward", "critic"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["generate", "values"]
