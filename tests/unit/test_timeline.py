"""The picture of a trace."""

from pathlib import Path

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
