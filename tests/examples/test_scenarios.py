"""Every scenario runs as a newcomer would run it, `windtunnel run scenarios/NAME.yaml`, and its report is the expected one.

To the byte: a change is wanted or a mistake, and `make golden` shows which.
"""

import json
from pathlib import Path

import pytest

from tests.command import Cli
from tests.golden.reports import CATALOG, HERE, SCENARIOS, expected

WANTED = {"quickstart", "llama3_405b_16k", "gpt3_175b_a100", "hybrid_v100_t4", "degraded_link"}


def test_the_promised_scenarios_are_there() -> None:
    assert {path.stem for path in SCENARIOS} >= WANTED


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(cli: Cli, scenario: Path, tmp_path: Path) -> None:
    done = cli("run", scenario, "--catalog", CATALOG, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["metrics"]["iteration_s"] > 0
    assert report["memory"]
    assert (tmp_path / "report.txt").read_text() == expected(scenario).read_text()


def test_every_expected_report_has_its_scenario() -> None:
    assert sorted(HERE.glob("*.txt")) == sorted(expected(scenario) for scenario in SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_a_newcomer_is_told_what_it_is_about(scenario: Path) -> None:
    first = scenario.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
