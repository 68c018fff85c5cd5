"""Every scenario runs as a newcomer would run it: `windtunnel run scenarios/NAME.yaml`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.reports import CATALOG, ROOT, SCENARIOS

WANTED = {"quickstart", "llama3_405b_16k", "gpt3_175b_a100", "hybrid_v100_t4", "degraded_link"}


def test_the_promised_scenarios_are_there() -> None:
    assert {path.stem for path in SCENARIOS} >= WANTED


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(scenario: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("windtunnel")
    arguments = ["run", scenario.relative_to(ROOT), "--catalog", CATALOG, "--out", tmp_path, "--json"]
    done = subprocess.run([command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["metrics"]["iteration_s"] > 0
    assert report["memory"]
    assert (tmp_path / "report.txt").stat().st_size > 0


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_a_newcomer_is_told_what_it_is_about(scenario: Path) -> None:
    first = scenario.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
