"""What a simulated iteration says of its own error."""

from pathlib import Path

import pytest

from costmodels import fitted
from simcore.api import run
from tests.golden.reports import CATALOG
from tests.unit.toys import SCENARIO, write_scenario

BANDS = fitted.load("training")["error"]


@pytest.mark.parametrize(("device", "kind"), [("a100_sxm_80", "seen"), ("b200_sxm", "unseen")])
def test_devices_that_no_fit_has_seen_have_the_wider_band(device: str, kind: str, tmp_path: Path) -> None:
    path = write_scenario(tmp_path, SCENARIO.replace("a100_sxm_80", device))
    assert run(path).report.error == {"iteration_s": BANDS[kind]}
    assert BANDS["seen"] < BANDS["unseen"] < 1


def test_a_calibrated_machine_claims_nothing_from_other_peoples_rows(tmp_path: Path) -> None:
    (tmp_path / "calibration" / "devices").mkdir(parents=True)
    entry = (CATALOG / "devices" / "this_machine.yaml").read_text()
    measured = "measured: {kernels: {copy: [[1000, 1.0e-6]]}}\n"
    (tmp_path / "calibration" / "devices" / "this_machine.yaml").write_text(entry + measured)
    text = SCENARIO.replace("a100_sxm_80", "this_machine").replace("nvlink3", "loopback")
    assert run(write_scenario(tmp_path, text)).report.error == {}
