"""The catalogue: what is in it, how it is found, what a mistake in an entry says, and that writing and reading agree."""

import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costmodels.catalog import BUILT_IN, KINDS, Catalog, Kind, device, fold, link, load_device, store, write_entry
from costmodels.entries import DTYPES, aliases, load
from costmodels.errors import DataError

CATALOG = Catalog()
ENTRIES = [(kind, path) for kind in KINDS for path in sorted((BUILT_IN / kind).glob("*.yaml"))]
DEVICES = [CATALOG.device(name) for name in CATALOG.names("devices")]
CORES = {"pascal": 64, "volta": 64, "turing": 64, "ampere": 128, "ada": 128, "hopper": 128, "blackwell": 128}
HALF = ("a100", "a800", "a30")  # Ampere with half of the float32 lanes
ISSUE = {
    "devices": "V100-SXM2-16GB V100-SXM2-32GB V100-PCIE-16GB P100 T4 A10 A40 A100-SXM-40GB A100-SXM-80GB A100-PCIE-40GB "
    "A100-PCIE-80GB L4 L20 L40S RTX_4090 H100-SXM H100-PCIe H800 H200 B200 GB200 MI250X MI300X jetson_orin phone "
    "laptop_cpu server_cpu",
    "links": "nvlink1 nvlink2 nvlink3 nvlink4 nvlink5 pcie3 pcie4 pcie5 infiniband_hdr infiniband_ndr roce_400 efa_400 "
    "ethernet_1g ethernet_10g ethernet_25g ethernet_100g ethernet_200g ethernet_400g wifi6 wifi6_up 4g 4g_up 5g 5g_up "
    "wan_continent wan_ocean loopback",
    "stores": "nvme nfs hdfs s3 /dev/shm",
}
PUBLIC = """
    a100 a100_sxm a100_pcie_40g a100_pcie_80g b200_sxm h100_sxm l40s a40 t4 v100_pcie p100_pcie
    NVIDIA_A100-PCIE-40GB NVIDIA_A100_80GB_PCIe NVIDIA_A100-SXM4-40GB Tesla_V100-PCIE-32GB Tesla_P100-PCIE-16GB Tesla_T4
    H100-SXM-80GB NVIDIA_H100-PCIe-80GB NVIDIA_H100_80GB_HBM3 B200-SXM-180GB B300 GB300 H20 A6000-48GB RTXPRO6000 A800-80GB
    V100-SXM3-32GB_(DGX-2) Intel_Gaudi2 TPU-v5e TPU_v5p_(2x_v5p-4096) NVIDIA_L40 NVIDIA_A30 RTX_A5000
    Jetson_Orin_Nano_Super_8GB,_25_W Intel(R)_Graphics_[0xe211]
"""


@pytest.mark.parametrize(("kind", "path"), ENTRIES, ids=lambda x: x if isinstance(x, str) else x.stem)
def test_every_entry_loads_and_every_number_has_a_source(kind: Kind, path: Path) -> None:
    spec = load(kind, path)
    numbers = re.findall(r"\{value:", path.read_text())
    assert len(spec.sources) == len(numbers) >= 3
    assert all(len(source) > 5 for source in spec.sources.values())
    assert all(
        not source.lower().startswith("assum") or source.startswith("assumption:") for source in spec.sources.values()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_entries_share_a_name(kind: Kind) -> None:
    owners: dict[str, str] = {}
    for path in sorted((BUILT_IN / kind).glob("*.yaml")):
        for name in {fold(path.stem), *map(fold, aliases(path))}:
            assert owners.setdefault(name, path.stem) == path.stem, f"{name} means {owners[name]} and {path.stem}"


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_was_asked_for_is_there(kind: Kind) -> None:
    find = {"devices": device, "links": link, "stores": store}[kind]
    names = {find(name).name for name in ISSUE[kind].split()}
    assert len(names) == len(ISSUE[kind].split())


@pytest.mark.parametrize("name", PUBLIC.split())
def test_names_of_published_measurements_are_found(name: str) -> None:
    assert device(name.replace("_", " ")) == device(name)


def test_spelling_does_not_matter() -> None:
    names = ["h100_sxm", "H100-SXM", " NVIDIA H100 SXM ", "nvidia_h100-sxm5-80gb"]
    assert {device(name).name for name in names} == {"h100_sxm"}
    assert device("Tesla T4").name == device("NVIDIA Tesla T4").name == "t4"


@pytest.mark.parametrize("spec", DEVICES, ids=lambda d: d.name)
def test_devices_name_links_that_exist_and_known_dtypes(spec: Any) -> None:
    assert all(CATALOG.link(name).B_per_s > 1e9 for name in (spec.host_link, spec.peer_link) if name)
    assert set(spec.flop_per_s) <= set(DTYPES)
    assert 1e9 <= spec.memory_B <= 1e12
    assert 1e10 <= spec.memory_B_per_s <= 1e13


@pytest.mark.parametrize("spec", DEVICES, ids=lambda d: d.name)
def test_narrower_is_not_slower(spec: Any) -> None:
    """Peaks grow from float32 to tf32 to 16 to 8 bits; Blackwell Ultra gave its integers of 8 bits away."""
    order = [spec.flop_per_s[d] for d in ("float32", "tf32", "float16", "fp8") if d in spec.flop_per_s]
    assert order == sorted(order)
    if spec.name not in ("b300_sxm", "gb300", "raspberry_pi_5"):
        assert spec.flop_per_s.get("int8", float("inf")) >= spec.flop_per_s.get("float16", 0.0)


@pytest.mark.parametrize(
    "spec", [d for d in DEVICES if d.vendor == "nvidia" and d.clock_hz and d.name != "h20"], ids=lambda d: d.name
)
def test_float32_peak_is_cores_times_clock(spec: Any) -> None:
    """Two FLOP a core and cycle. The data sheet of the H20 states more than its clock gives, and says so in its source."""
    cores = 64 if spec.name.startswith(HALF) else 128 if spec.name == "p4" else CORES[spec.architecture]
    assert spec.flop_per_s["float32"] == pytest.approx(2 * cores * spec.units * spec.clock_hz, rel=0.03)


def test_generations_get_faster() -> None:
    rates = [CATALOG.link(f"nvlink{g}").B_per_s for g in range(1, 6)] + [CATALOG.link("pcie5").B_per_s]
    assert rates[:5] == sorted(rates[:5]) and rates[5] < rates[0]
    assert all(
        CATALOG.link(f"pcie{g + 1}").B_per_s == pytest.approx(2 * CATALOG.link(f"pcie{g}").B_per_s, rel=1e-3)
        for g in (3, 4)
    )
    dense = [device(n).flop_per_s["float16"] for n in ("p100", "v100", "a100", "h100", "b200", "gb200")]
    assert dense == sorted(dense)
    stores = [store(n) for n in ("nvme_gen3", "nvme_gen4", "nvme_gen5")]
    assert [s.read_B_per_s for s in stores] == sorted(s.read_B_per_s for s in stores)


@pytest.mark.parametrize("name", CATALOG.names("stores"))
def test_one_stream_gets_no_more_than_all(name: str) -> None:
    spec = CATALOG.store(name)
    assert spec.stream_read_B_per_s <= spec.read_B_per_s
    assert spec.stream_write_B_per_s <= spec.write_B_per_s


def test_access_networks_differ_by_direction() -> None:
    for name in ("wifi6", "lte", "5g"):
        assert CATALOG.link(f"{name}_up").B_per_s < CATALOG.link(name).B_per_s


def test_unknown_names_get_close_ones() -> None:
    with pytest.raises(DataError) as caught:
        device("h100_smx")
    [problem] = caught.value.problems
    assert problem.given == "'h100_smx'"
    assert "h100_sxm" in problem.advice
    with pytest.raises(DataError, match="infiniband_ndr"):
        link("infiniband_nrd")


def test_a_machine_that_was_not_measured_says_how_to() -> None:
    for find in (device, link, store):
        with pytest.raises(DataError, match="run `windtunnel calibrate`"):
            find("this_machine_x")


def test_a_machine_whose_operators_were_not_measured_says_how_to(tmp_path) -> None:
    with pytest.raises(DataError, match=r"run `windtunnel calibrate`.*`windtunnel calibrate --operators MODEL:BATCH`"):
        device("this_machine_limited")
    write_entry(tmp_path, "devices", "this_machine", ENTRY)
    with pytest.raises(DataError, match=r"`windtunnel calibrate --operators MODEL:BATCH`") as caught:
        device("this_machine_limited", [tmp_path])
    assert "has not been measured" not in str(caught.value)


ENTRY: dict[str, Any] = {
    "title": "Mine",
    "kind": "cpu",
    "vendor": "me",
    "architecture": "x86",
    "aliases": ["Dell Box"],
    "memory_B": {"value": "16 GiB", "source": "measured today"},
    "memory_B_per_s": {"value": 20e9, "source": "measured today"},
    "flop_per_s": {"float32": {"value": "1.5 Tflop/s", "source": "measured today"}},
    "units": {"value": 8, "source": "measured today"},
    "launch_s": {"value": 3e-6, "source": "measured today"},
    "efficiency": {"vector": 0.9},
    "measured": {"gemm": [{"m": 128, "seconds": 1e-3}], "spread": {"gemm": 0.02}},
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_entry(tmp_path, "devices", "this_machine", ENTRY)
    assert path == tmp_path / "devices" / "this_machine.yaml"
    spec = load_device(path)
    assert (spec.name, spec.memory_B, spec.units, spec.launch_s) == ("this_machine", 16 * 2**30, 8, 3e-6)
    assert spec.flop_per_s == {"float32": 1.5e12}
    assert spec.efficiency == ENTRY["efficiency"] and spec.measured == ENTRY["measured"]
    assert spec.sources["flop_per_s.float32"] == "measured today"
    assert Catalog([tmp_path]).device("dell box") == spec


def test_folders_of_the_user_come_first(tmp_path: Path) -> None:
    write_entry(tmp_path, "devices", "h100_sxm", {**ENTRY, "aliases": ["t4"]})
    mine = Catalog([tmp_path / "missing", tmp_path])
    assert mine.device("H100-SXM").title == mine.device("T4").title == "Mine"
    assert CATALOG.device("h100_sxm").title != "Mine"
    assert set(mine.names("devices")) == set(CATALOG.names("devices"))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    mine = Catalog([tmp_path])
    write_entry(tmp_path, "devices", "mine", ENTRY)
    assert mine.device("mine").title == "Mine"
    write_entry(tmp_path, "devices", "mine", {**ENTRY, "title": "Newer"})
    assert mine.device("mine").title == "Newer"


def test_all_mistakes_are_said_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    wrong = {
        "title": 7,
        "kind": "cpu",
        "vendor": "me",
        "aliases": "just one",
        "memory_b": {"value": "16 GB", "source": "x"},
        "memory_B_per_s": 20e9,
        "flop_per_s": {"float33": {"value": "1 Tflop/s", "source": "x"}, "float32": {"value": "2 GB", "source": "x"}},
        "units": {"value": 2.5, "source": "x"},
        "launch_s": {"value": "-3 us", "source": "x"},
        "overlap_slowdown": {"value": 1.5, "source": "x"},
        "l2_B": {"value": "1 MiB", "source": " "},
    }
    with pytest.raises(DataError) as caught:
        write_entry(tmp_path, "devices", "bad", wrong)
    problems = {p.field: p for p in caught.value.problems}
    assert set(problems) == {
        *("title", "aliases", "memory_b", "memory_B_per_s", "flop_per_s.float33", "flop_per_s.float32", "units"),
        *("launch_s", "overlap_slowdown", "l2_B", "architecture", "memory_B"),
    }
    assert problems["memory_b"].advice == "Did you mean memory_B?"
    assert problems["architecture"].allowed == "required"
    assert "[information]" in problems["flop_per_s.float32"].advice
    assert not (tmp_path / "devices").exists()


def test_the_efficiency_of_a_link_is_a_number_and_of_a_device_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape("efficiency.vector: given 'high'; allowed: a number")):
        write_entry(tmp_path, "devices", "x", {**ENTRY, "efficiency": {"vector": "high"}})
    with pytest.raises(DataError, match="measured: given 7; allowed: a mapping"):
        write_entry(tmp_path, "devices", "x", {**ENTRY, "measured": 7})
    rate, latency = {"value": "1 GB/s", "source": "me"}, {"value": "1 us", "source": "me"}
    entry = {"title": "x", "kind": "loopback", "B_per_s": rate, "latency_s": latency, "efficiency": {"vector": 1.0}}
    with pytest.raises(DataError, match=r"efficiency: given .* Every number says where it comes from"):
        write_entry(tmp_path, "links", "x", entry)


@given(st.randoms(use_true_random=False), st.sampled_from(ENTRIES))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_spoiled_file_is_read_or_refused(tmp_path: Path, random: Random, entry: tuple[Kind, Path]) -> None:
    kind, source = entry
    text = source.read_text()
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(text) + 1)
        text = (
            text[:at]
            + random.choice(["", "{", "}", ":", "-", "\n", " 7 ", "null", "[]", "&a", "*a"])
            + text[at + random.randint(0, 9) :]
        )
    path = tmp_path / f"{random.getrandbits(60)}.yaml"
    path.write_text(text)
    try:
        assert load(kind, path).sources
    except DataError as error:
        assert error.problems


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "a: 1\n\tb: 2", "\x00", "!!python/object:os.x {}", "[" * 5000])
def test_files_that_are_no_entries(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path))):
        load_device(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_device(tmp_path / "none.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_has_a_row_for_each_entry(kind: Kind) -> None:
    frame = CATALOG.frame(kind)
    assert list(frame["name"]) == list(CATALOG.names(kind))
    assert (frame["sources"] > 0).all()
    assert kind != "devices" or {"price_usd_per_hour", "power_W", "flop_per_s.bfloat16"} <= set(frame.columns)


def test_one_device_is_read_in_milliseconds_and_without_pint() -> None:
    code = (
        "import sys, time; from costmodels.catalog import device; start = time.perf_counter(); device('h100_sxm');"
        "print(time.perf_counter() - start, 'pint' in sys.modules, 'pandas' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[1:] == ["False", "False"]
    assert float(out[0]) < 0.05  # a millisecond on an idle machine
