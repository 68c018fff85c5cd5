"""The command that measures accuracies goes on where it stopped, and its table says what the runs do."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from real.federated.accuracy import PARTITIONS, STRATEGIES, jobs_left, kept, main, settings
from real.federated.accuracy_table import Run, ahead, mean_and_error, table
from real.federated.datasets import small_digits
from simcore.errors import InputError


def run(strategy: str, seed: int, last: float, server_B: int = 100) -> Run:
    return Run(
        partition="Dirichlet 0.1",
        strategy=strategy,
        seed=seed,
        aggregated=(10.0, 50.0, last, last, last, last),
        trained=(1.0,) * 6,
        server_B=server_B,
        peer_B=2_000_000,
        seconds=1.0,
    )


RUNS = [
    run("FedMoE-DA", 0, 92.0, 20),
    run("FedMoE-DA", 1, 96.0, 20),
    run("FedAvg-MoE", 0, 91.0),
    run("FedAvg-MoE", 1, 93.0),
]


def test_differences_are_of_equal_seeds() -> None:
    found = ahead(RUNS, "FedMoE-DA", "FedAvg-MoE")
    assert found == [1.0, 3.0]
    assert mean_and_error(found) == pytest.approx((2.0, 1.0))
    assert ahead(RUNS, "FedMoE-DA", "FedAvg-MoE", after=2) == [0.0, 0.0]


def test_the_table_has_what_was_measured() -> None:
    title, _, ours, theirs = table(RUNS, list(STRATEGIES))
    assert title == "Dirichlet 0.1: 2 seeds, 6 rounds"
    assert ours.split() == ["FedMoE-DA", "94.00", "±2.00", "1.00", "±0.00", "20.0%", "2.0"]
    assert theirs.split() == [
        "FedAvg-MoE",
        "92.00",
        "±1.00",
        "2.00",
        "±1.00",
        "0.00",
        "±0.00",
        "1.00",
        "±0.00",
        "100.0%",
        "2.0",
    ]


def test_finished_runs_are_kept_and_other_settings_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    assert kept(path, settings(6)) == []
    path.write_text(json.dumps({"settings": settings(6), "runs": [asdict(r) for r in RUNS]}))
    assert kept(path, settings(6)) == RUNS
    jobs = [("Dirichlet 0.1", s, seed, 6) for seed in (0, 1, 2) for s in ("FedMoE-DA", "local only")]
    left = jobs_left(RUNS, jobs)
    assert [(j[1], j[2]) for j in left] == [("local only", 0), ("local only", 1), ("FedMoE-DA", 2), ("local only", 2)]
    with pytest.raises(InputError, match=r"settings\.rounds"):
        kept(path, settings(7))
    path.write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        kept(path, settings(6))
    assert main(["--out", str(path), "--seeds", "1"]) == 2


def test_a_partition_with_domains_turns_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("real.federated.accuracy.mnist", small_digits)
    plain, turned = PARTITIONS["Dirichlet 0.5"].data(0), PARTITIONS["Dirichlet 0.5, 4 rotations"].data(0)
    assert [len(p.train.classes) for p in plain] == [len(t.train.classes) for t in turned]
    assert plain[0].train.pixels.shape[1:] == (1, 4, 4)
    assert plain[0].train.pixels.allclose(turned[0].train.pixels, atol=1e-4)
    assert not plain[1].train.pixels.allclose(turned[1].train.pixels)


@pytest.mark.slow
def test_a_repeated_command_trains_only_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.json"
    wanted = ["--seeds", "1", "--rounds", "1", "--partitions", "Dirichlet 0.5", "--processes", "1", "--out", str(path)]
    assert main([*wanted, "--strategies", "local only", "--minutes", "0"]) == 1
    assert "1 trainings are left" in capsys.readouterr().out
    assert main([*wanted, "--strategies", "local only"]) == 0
    first = path.read_text()
    assert main([*wanted, "--strategies", "local only"]) == 0
    assert path.read_text() == first
    assert "Everything is in" in capsys.readouterr().out
    assert json.loads(first)["runs"][0]["server_B"] == 0
