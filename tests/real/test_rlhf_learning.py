"""Rewards rise: as recorded for the notebook, and the command that records them."""

import json
from pathlib import Path

import pytest

from real.rlhf.job import ALGORITHMS

pytest.importorskip("ray")
pytest.importorskip("transformers")

from real.rlhf import learning

RECORDED = Path(__file__).resolve().parents[2] / "notebooks" / "data" / "rlhf_learning.json"


def test_recorded_rewards_rise_with_every_algorithm_and_seed() -> None:
    runs = json.loads(RECORDED.read_text())["runs"]
    assert {run["algorithm"] for run in runs} == set(ALGORITHMS)
    for run in runs:
        first, last = (sum(step["reward"] for step in part) / 5 for part in (run["history"][:5], run["history"][-5:]))
        assert last > first + 0.15, (run["algorithm"], run["seed"])
        if run["algorithm"] == "safe_rlhf":
            assert sum(step["cost"] for step in run["history"][-5:]) / 5 < run["cost_limit"] + 0.02


@pytest.mark.slow
def test_the_command_writes_a_row_for_each_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "learning.json"
    assert learning.main(["--algorithms", "remax", "--seeds", "2", "--iterations", "2", "-o", str(out)]) == 0
    rows = json.loads(out.read_text())["runs"]
    assert [(row["algorithm"], row["seed"], len(row["history"])) for row in rows] == [("remax", 0, 2), ("remax", 1, 2)]
    assert rows[0]["history"] != rows[1]["history"]
    assert "remax, seed 1: reward" in capsys.readouterr().out
