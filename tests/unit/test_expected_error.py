"""What a simulated iteration says of its own error."""

from pathlib import Path

import pytest

from costmodels import compute, fitted
from costmodels.catalog import Catalog
from costmodels.kernels import kernel
from simcore.api import load, run
from simcore.reporting.uncertainty import own_errors
from simcore.training.expected_error import widened
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


def test_a_plan_of_worse_estimates_than_the_published_ones_is_wider() -> None:
    found = {"error": {"seen": 0.06}, "own": {"seen": 0.10}}
    assert widened("seen", 0.05, found) == widened("seen", 0.10, found) == 0.06
    assert widened("seen", 0.26, found) == pytest.approx((0.06**2 + 0.26**2 - 0.10**2) ** 0.5, abs=1e-3)


def test_errors_along_the_critical_path_are_shares_of_it(tmp_path: Path) -> None:
    scenario = load(write_scenario(tmp_path, SCENARIO))
    done = run(scenario)
    own = own_errors(done.plan, done.trace, scenario.cost())
    assert {"gemm", "elementwise"} <= set(own)
    assert all(0 < error < 1 for error in own.values())


def test_a_calibrated_machine_errs_as_its_own_points_do(tmp_path: Path) -> None:
    """Points on a line have no error but rounding's; those that jump by a tenth have one."""
    entry = (CATALOG / "devices" / "this_machine.yaml").read_text()
    for jump, least, most in ((1.0, 0.0, 1e-6), (1.1, 0.02, 0.2)):
        points = ", ".join(f"[{1000 * 2**i}, {1e-6 * 2**i * jump ** (i % 2):.6e}]" for i in range(6))
        path = tmp_path / "devices" / "this_machine.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{entry}measured: {{kernels: {{copy: [{points}]}}}}\n")
        device = Catalog([tmp_path]).device("this_machine")
        found = compute.estimate(kernel("copy", "float32", elements=3000), device)
        assert found.method == "measured" and found.error is not None and least <= found.error <= most
