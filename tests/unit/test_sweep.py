"""Sweeps: every combination, errors in a column, files whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from simcore import sweep as sweeping
from simcore.errors import InputError
from simcore.reporting.sweep_plot import draw, picture
from simcore.sweep import check_suffix, parse_over, points, run_point, save, sweep
from tests.unit.toys import write_scenario


def test_values_are_split_at_commas_and_read_as_yaml() -> None:
    assert parse_over(["a.b=1,2,4", "c=x, y", "d=3", "e=[[1, 2], {k: v}]", "f=80 GB,1e3"]) == {
        "a.b": [1, 2, 4], "c": ["x", "y"], "d": [3], "e": [[1, 2], {"k": "v"}], "f": ["80 GB", 1000.0],
    }  # fmt: skip


@pytest.mark.parametrize("over", [["a"], [], ["a=[]"], ["=1"], ["a=1,[2"]])
def test_what_is_no_sweep_is_told(over: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_over(over)
    assert caught.value.problems


def test_points_are_the_cartesian_product_in_order() -> None:
    assert points({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip


def test_a_point_that_fails_gets_its_error_and_the_others_their_numbers(tmp_path: Path) -> None:
    seen: list[float] = []
    frame = sweep(
        write_scenario(tmp_path), {"planner.microbatch": [1, 2, -3]}, workers=1, progress=lambda s, _: seen.append(s)
    )
    assert frame["planner.microbatch"].tolist() == [1, 2, -3]
    assert frame["iteration_s"].notna().tolist() == [True, True, False]
    assert "planner.microbatch" in frame["error"][2]
    assert frame["error"].isna().tolist() == [True, True, False]
    assert seen == pytest.approx([1 / 3, 2 / 3, 1])


def test_processes_give_the_same_frame_as_none(tmp_path: Path) -> None:
    over = {"workload.global_batch": [8, 16]}
    path = write_scenario(tmp_path)
    pd.testing.assert_frame_equal(sweep(path, over, workers=2), sweep(path, over, workers=1))


def dies_at_two(point: Any) -> dict[str, Any]:
    if point["a"] == 2:
        os._exit(9)
    return {**point, "error": None}


def test_a_worker_that_dies_takes_no_other_point_with_it() -> None:
    todo = [{"a": i} for i in range(4)]
    rows = dict(sweeping._locally(dies_at_two, todo, 2))
    assert [rows[i]["error"] is None for i in range(4)] == [True, True, False, True]
    assert "died" in rows[2]["error"]


def test_a_surprise_is_an_error_of_its_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("simcore.scenario.load", explode)
    row = run_point(tmp_path / "x.yaml", [], [], {"a": 1})
    assert row == {"a": 1, "error": "ZeroDivisionError: surprise"}


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="local, ray"):
        sweep(write_scenario(tmp_path), {"seed": [1]}, engine="cloud")


@pytest.mark.slow
def test_ray_gives_the_same_frame(tmp_path: Path) -> None:
    path, over = write_scenario(tmp_path), {"workload.global_batch": [8, 16]}
    pd.testing.assert_frame_equal(sweep(path, over, engine="ray"), sweep(path, over, workers=1))


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "a.parquet": pd.read_parquet,
    "a.csv": pd.read_csv,
    "a.json": pd.read_json,
}


@pytest.mark.parametrize("name", READERS)
def test_the_suffix_says_how_a_frame_is_written(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"x": [1, 2], "y": [0.5, 0.25]})
    save(frame, tmp_path / name)
    pd.testing.assert_frame_equal(READERS[name](tmp_path / name), frame)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_other_suffixes_are_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match="parquet"):
        check_suffix(Path("a.xlsx"))


def test_the_picture_has_a_line_for_each_of_the_other_values(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1, 2, 1, 2], "tp": [1, 1, 8, 8], "iteration_s": [4.0, 2.0, 3.0, None]})
    axes = picture(frame, ["n", "tp"]).axes[0]
    assert [line.get_label() for line in axes.get_lines()] == ["tp 1", "tp 8"]
    assert "1 of 4 points failed" in axes.get_title(loc="left")
    draw(frame, ["n", "tp"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError):
        picture(frame.assign(iteration_s=None), ["n"])
