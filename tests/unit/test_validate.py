"""`validate`: its numbers by hand, and every bad row named."""

from pathlib import Path

import pandas as pd
import pytest

import costmodels
from costmodels.catalog import Catalog
from costmodels.compute import estimate
from costmodels.errors import DataError
from costmodels.kernels import kernel
from simcore.scoreboard import every_table, markdown
from simcore.tables import names
from simcore.validate import validate


def table(path: Path, factors: list[float], **columns: object) -> Path:
    """Rows whose measured time is the prediction over each factor, so that errors are factor - 1."""
    device = Catalog().device("h100_sxm")
    predicted = estimate(kernel("gemm", "bfloat16", m=4096, n=4096, k=4096), device).seconds
    rows = [
        {
            "device": "h100_sxm",
            "dtype": "bfloat16",
            "batch": 1,
            "m": 4096,
            "n": 4096,
            "k": 4096,
            "latency_s": predicted / f,
            **columns,
        }
        for f in factors
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_numbers_by_hand(tmp_path: Path) -> None:
    found = validate("gemm", table(tmp_path / "t.csv", [1.1, 1.1, 0.8, 1.4]))
    assert found["rows"] == found["covered"] == 4
    assert found["median_ape"] == pytest.approx(0.15)
    assert found["mean_ape"] == pytest.approx(0.2)
    assert found["bias"] == pytest.approx(0.1)
    assert found["p90_ape"] == pytest.approx(0.34)


def test_rows_of_unknown_devices_are_not_covered(tmp_path: Path) -> None:
    found = validate("gemm", table(tmp_path / "t.csv", [1.0], device="abacus"))
    assert (found["rows"], found["covered"], found["median_ape"]) == (1, 0, None)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_out_has_every_row(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"o{suffix}"
    validate("gemm", table(tmp_path / "t.csv", [1.0, 2.0]), out=out)
    written = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    assert written["error"].tolist() == pytest.approx([0.0, 1.0])


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    frame = pd.read_csv(table(tmp_path / "t.csv", [1.0] * 3)).astype(object)
    frame.loc[1, "m"], frame.loc[2, "latency_s"] = "wide", -1
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError) as error:
        validate("gemm", tmp_path / "t.csv")
    assert {p.field for p in error.value.problems} == {"m of rows 3", "latency_s of rows 4"}
    frame.drop(columns=["n", "k"]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError) as error:
        validate("gemm", tmp_path / "t.csv")
    assert {p.field for p in error.value.problems} == {"column n", "column k"}


def test_another_unit_is_noticed(tmp_path: Path) -> None:
    slow, fast = table(tmp_path / "ms.csv", [1e-3] * 3), table(tmp_path / "h.csv", [1.0, 1.0, 3600.0])
    with pytest.raises(DataError, match=r"rows 2-4.*Milliseconds"):
        validate("gemm", slow)
    with pytest.raises(DataError, match=r"rows 4: given .* s, where the data sheet allows"):
        validate("gemm", fast)


def test_the_shipped_measurements_are_there_for_every_table() -> None:
    for name in names():
        found = validate(name)
        assert found["covered"] > 0.9 * found["rows"] > 0
        assert found["median_ape"] < found["roofline"]["median_ape"]
        assert {"rows", "value", "median_ape"} <= set(found["groups"][next(iter(found["groups"]))][0])


def test_the_scoreboard_in_the_repository_is_that_of_the_fitted_tables() -> None:
    assert (Path(costmodels.__file__).parent / "SCOREBOARD.md").read_text() == markdown(every_table())


def test_unknown_tables_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="elementwise"):
        validate("gem", tmp_path / "t.csv")
    with pytest.raises(DataError, match="unreadable"):
        validate("gemm", tmp_path / "none.csv")
