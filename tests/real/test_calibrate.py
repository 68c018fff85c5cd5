"""A calibration writes entries that the catalogue reads and estimates use."""

from pathlib import Path

import pytest

from costmodels.catalog import Catalog
from costmodels.compute import estimate
from costmodels.kernels import kernel
from costmodels.measured import sharing
from real.calibrate import calibrate


@pytest.mark.slow
def test_a_quick_calibration_gives_a_usable_machine(tmp_path: Path) -> None:
    shares: list[float] = []
    summary = calibrate(tmp_path, quick=True, progress=lambda share, phrase: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    catalog = Catalog([tmp_path])
    for name in ("this_machine", "this_machine_alone"):
        device = catalog.device(name)
        found = estimate(kernel("gemm", "float32", m=1000, n=300, k=300), device)
        assert found.method == "measured"
        assert 0.2 < 2 * 1000 * 300 * 300 / found.seconds / device.flop_per_s["float32"] < 1.5
        assert all(source.startswith("measured 20") for source in device.sources.values())
    link = catalog.link("this_machine_loopback")
    assert set(link.measured) == {
        *("all_reduce", "all_gather", "reduce_scatter", "send_recv", "all_to_all", "barrier"),
    }
    assert catalog.store("this_machine_disk").write_B_per_s > 1e6
    copied = estimate(kernel("checkpoint/d2h", "float32", elements=10**9), catalog.device("this_machine"))
    assert copied.method == "measured"
    assert 1e8 < 1e9 / copied.seconds < 1e12
    assert sharing(catalog.device("this_machine")) > 0.5
    assert summary["overlap_slowdown"] >= 0
