"""Each scenario's report is the expected one, to the byte. A change is wanted or a mistake: `make golden` shows which."""

from pathlib import Path

import pytest

from tests.golden.reports import HERE, SCENARIOS, expected, made


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_the_report_is_the_expected_one(scenario: Path) -> None:
    assert made(scenario) == expected(scenario).read_text()


def test_every_expected_report_has_its_scenario() -> None:
    assert sorted(HERE.glob("*.txt")) == sorted(expected(scenario) for scenario in SCENARIOS)
