"""Which scenarios have an expected report, and how it is made."""

from pathlib import Path

from simcore.api import load, run
from simcore.reporting.text import as_text, report_view

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))
CATALOG = HERE / "catalog"
"""`this_machine` as it is nowhere, found before what `windtunnel calibrate` measured here."""


def expected(scenario: Path) -> Path:
    """The file that holds a scenario's report."""
    return HERE / f"{scenario.stem}.txt"


def made(scenario: Path) -> str:
    """The report as people read it: four digits, so that the last bits of another processor do not show."""
    return as_text(report_view(run(load(scenario, folders=[CATALOG])).report))
