"""Loading scenarios: what is accepted, and how every mistake is told."""

from pathlib import Path

import pytest

from costmodels.libraries import known
from simcore.api import run
from simcore.errors import ScenarioError
from simcore.scenario import load
from tests.unit.toys import SCENARIO, write_scenario


def problems_of(path: Path, *overrides: str) -> dict[str, str]:
    """Field and full text of every problem that loading finds."""
    with pytest.raises(ScenarioError) as caught:
        load(path, overrides)
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_a_scenario_knows_its_cluster_workload_and_plan(tmp_path: Path) -> None:
    scenario = load(write_scenario(tmp_path))
    assert (scenario.name, scenario.seed, scenario.engine.sharing) == ("toy", 7, "max_min")
    assert scenario.cluster().n_ranks == 4
    assert scenario.workload().iterations == 3
    assert scenario.plan().n_ranks == 4
    assert scenario.faults() == []


def test_same_scenario_same_digest_and_plan(tmp_path: Path) -> None:
    first, second = load(write_scenario(tmp_path)), load(write_scenario(tmp_path, name="other.yaml"))
    assert first.digest == second.digest
    assert first.plan().digest == second.plan().digest


def test_the_digest_is_of_the_resolved_scenario(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    assert load(path).digest == load(path, ["engine.expand=false"]).digest
    assert load(path).digest != load(path, ["seed=8"]).digest
    assert load(path).digest != load(path, ["cluster.devices_per_node=8"]).digest


def test_a_planner_may_be_just_a_name(tmp_path: Path) -> None:
    text = SCENARIO.split("planner:")[0] + "planner: fixed\n"
    assert load(write_scenario(tmp_path, text)).sections["planner"].name == "fixed"


def test_problems_of_all_sections_come_at_once(tmp_path: Path) -> None:
    found = problems_of(
        write_scenario(tmp_path),
        "seed=-1",
        "cluster.nodes=many",
        "workload.seq_len=0",
        "planner.zero=9",
        "engine.sharing=best",
    )
    assert set(found) == {"seed", "cluster.nodes", "workload.seq_len", "planner.zero", "engine.sharing"}


def test_unknown_keys_get_the_closest_known_one(tmp_path: Path) -> None:
    found = problems_of(write_scenario(tmp_path), "cluster.device_per_node=3", "worklod=1")
    assert "Did you mean devices_per_node" in found["cluster.device_per_node"]
    assert "Did you mean workload" in found["worklod"]


def test_unknown_parts_and_devices_get_suggestions(tmp_path: Path) -> None:
    found = problems_of(write_scenario(tmp_path), "cluster.topology=singel_node", "planner.name=fixt")
    assert "single_node" in found["cluster.topology"]
    assert "fixed" in found["planner.name"]
    (text,) = problems_of(write_scenario(tmp_path), "cluster.device=a100_sxm_8").values()
    assert "a100_sxm_80" in text


def test_missing_sections_are_named(tmp_path: Path) -> None:
    assert {"name", "cluster", "workload", "planner"} <= set(problems_of(write_scenario(tmp_path, "seed: 1\n")))


def test_faults_are_named_by_position_without_pydantics_tags(tmp_path: Path) -> None:
    found = problems_of(
        write_scenario(tmp_path), "faults=[{kind: device_slows, rank: 0, at: 1 s, factor: 7}, {kind: device_sloows}]"
    )
    assert set(found) == {"faults.0.factor", "faults.1.kind"}
    assert "device_slows" in found["faults.1.kind"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"- a\n- b\n", "a list"),
        (b"just text", "a text"),
        (b"name: [1, 2", "line"),
        (b"a: 1\n\tb: 2\n", "tab"),
        (b"name: a\nname: b\n", "given twice"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"name: \x00", "character"),
        (b"name: .nan\n", "finite"),
        (b"seed: 99999999999999999999999999\n", "2^63"),
        (b"1: 2\n", "keys that are names"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "nested"),
        (
            b"a: &a [x, x]\nb: &b [*a, *a]\n"
            + b"".join(b"%c: &%c [*%c, *%c]\n" % (i, i, i - 1, i - 1) for i in range(99, 117)),
            "values",
        ),
        (b"a: !!python/object:os.system x\n", "constructor"),
    ],
)
def test_files_that_are_no_scenario(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=says.replace("^", r"\^")) as caught:
        load(path)
    assert caught.value.problems


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    write_scenario(tmp_path)
    for path in (tmp_path / "tow.yaml", tmp_path):
        with pytest.raises(ScenarioError, match=r"toy\.yaml"):
            load(path)


def test_words_stay_words_and_numbers_numbers(tmp_path: Path) -> None:
    text = SCENARIO.replace("name: toy", "name: no").replace("seed: 7", "seed: 7  # comment")
    assert load(write_scenario(tmp_path, text)).name == "no"


def test_a_calibration_folder_beside_the_scenario_is_searched(tmp_path: Path) -> None:
    from costmodels.catalog import BUILT_IN

    devices = tmp_path / "calibration" / "devices"
    devices.mkdir(parents=True)
    entry = (BUILT_IN / "devices" / "a100_sxm_80.yaml").read_text()
    (devices / "mine.yaml").write_text("\n".join(line for line in entry.splitlines() if not line.startswith("aliases")))
    path = write_scenario(tmp_path)
    assert load(path, ["cluster.device=mine"]).cluster().device(0).name == "mine"
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "calibration").rename(elsewhere)
    assert "cluster.device" in problems_of(path, "cluster.device=mine")
    assert load(path, ["cluster.device=mine"], [elsewhere]).cluster().device(0).name == "mine"


def test_kernels_of_the_named_libraries_run_and_the_report_says_so(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, SCENARIO.replace("a100_sxm_80", "h100_sxm"))
    plain, named = run(path).report, run(load(path, ["engine.libraries={gemm: sglang, attention: flash3}"])).report
    assert plain.libraries["gemm"].startswith("typical")
    assert named.libraries == {"gemm": "sglang", "attention": "flash3"}
    assert named.metrics["iteration_s"] != plain.metrics["iteration_s"]


def test_libraries_that_no_fit_tells_apart_are_refused_with_those_that_are(tmp_path: Path) -> None:
    told = problems_of(write_scenario(tmp_path), "engine.libraries={gemm: trtlm, attention: flash9}")
    assert ", ".join(known("gemm")) in told["engine.libraries.gemm"]
    assert "Did you mean trtllm?" in told["engine.libraries.gemm"]
    assert "flash3" in told["engine.libraries.attention"]
