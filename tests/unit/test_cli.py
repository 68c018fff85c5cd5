"""The command line: what it prints where, exit codes, files, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from simcore.plan import Plan
from simcore.reporting.perfetto import read_trace
from tests.command import Cli
from tests.unit.toys import write_scenario

ROOT = Path(__file__).resolve().parents[2]


def test_plan_writes_what_run_plays(cli: Cli, tmp_path: Path) -> None:
    scenario, file = write_scenario(tmp_path), tmp_path / "plan.json"
    planned = cli("plan", scenario, "-o", file, "--json")
    assert planned.code == 0
    digest = json.loads(planned.out)["plan_digest"]
    assert Plan.load(file).digest == digest
    ran = cli("run", scenario, "--plan", file, "--json")
    assert json.loads(ran.out)["plan_digest"] == digest
    assert digest in cli("plan", scenario).out


def test_run_prints_the_stable_keys(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", write_scenario(tmp_path), "--json", "--set", "workload.iterations=2")
    data = json.loads(done.out)
    assert {"plan_digest", "backend", "metrics", "memory", "warnings"} <= set(data)
    assert data["backend"] == "sim"
    assert data["metrics"]["iterations"] == 2
    assert data["metrics"]["iteration_s"] > 0


def test_run_prints_a_table_on_stdout_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", write_scenario(tmp_path))
    assert (done.code, done.err) == (0, "")
    assert "iteration_s" in done.out
    assert "Critical path" in done.out


def test_run_leaves_its_files(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("run", write_scenario(tmp_path), "--out", out, "--plot", "--json")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["plan.json", "report.json", "report.txt", "timeline.png", "trace.json.gz"]
    assert json.loads((out / "report.json").read_text()) == json.loads(done.out)
    assert read_trace(out / "trace.json.gz").plan_digest == Plan.load(out / "plan.json").digest
    assert str(out) in done.err


def test_check_says_that_nothing_stands_in_the_way(cli: Cli, tmp_path: Path) -> None:
    done = cli("check", write_scenario(tmp_path))
    assert (done.code, done.err) == (0, "")
    assert "nothing stands in the way (sim)" in done.out
    assert json.loads(cli("check", tmp_path / "toy.yaml", "--json").out)["backend"] == "sim"


MIXED = """\
name: mixed
cluster: {topology: single_node, device: t4, devices_per_node: 2, intra: pcie3, inter: ethernet_100g}
workload: {name: operator_training, model: resnet50, batch: 32}
planner: {name: qsync}
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            "planner.precision={t4: bfloat16}",
            "planner.precision.t4: given bfloat16; allowed: planned, int8, float16, float32",
        ),
        ("planner.memory={t4: 1 GB}", "3.05 GB are lacking: a smaller batch, or more precisions to choose from"),
        ("planner.keep=[layer9]", "planner.keep: given layer9; allowed: (parts of) names of adjustable operators"),
    ],
)
def test_check_refuses_plans_of_precisions_that_cannot_be(cli: Cli, tmp_path: Path, change: str, says: str) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(MIXED)
    done = cli("check", path, "--set", change)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_check_refuses_a_plan_with_an_unknown_operator(cli: Cli, tmp_path: Path) -> None:
    path, plan = tmp_path / "mixed.yaml", tmp_path / "plan.json"
    path.write_text(MIXED.replace("qsync", "uniform_precision"))
    cli("plan", path, "-o", plan)
    assert cli("check", path, "--plan", plan).code == 0
    changed = json.loads(plan.read_text())
    changed["decisions"]["precision"]["t4"]["layer9.conv1"] = "int8"
    plan.write_text(json.dumps(changed))
    done = cli("check", path, "--plan", plan)
    assert done.code == 2
    assert "layer9.conv1; allowed: one of the 54 adjustable operators of resnet50. Did you mean" in done.err


def test_two_runs_are_byte_identical(cli: Cli, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    for name in ("a", "b"):
        cli("run", scenario, "--out", tmp_path / name)
    for file in ("plan.json", "trace.json.gz", "report.json", "report.txt"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_saved_traces_are_compared(cli: Cli, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    for name, change in (("a", "seed=7"), ("b", "seed=7"), ("c", "planner.microbatch=1")):
        cli("run", scenario, "--out", tmp_path / name, "--set", change)
    files = [tmp_path / name / "trace.json.gz" for name in "abc"]
    same = cli("compare", "--traces", files[0], files[1], "--json")
    assert json.loads(same.out)["metrics"]["iteration_s"]["error"] == 0
    assert "simulated" in cli("compare", "--traces", files[0], files[1]).out
    different = cli("compare", "--traces", files[0], files[2])
    assert different.code == 2
    assert "plan_digest" in different.err


def test_compare_wants_one_thing_to_compare(cli: Cli, tmp_path: Path) -> None:
    assert cli("compare").code == 2


def test_sweep_prints_and_writes_a_table(cli: Cli, tmp_path: Path) -> None:
    scenario, file, picture = write_scenario(tmp_path), tmp_path / "out.parquet", tmp_path / "out.png"
    arguments = (
        "sweep",
        scenario,
        "--over",
        "planner.microbatch=1,2,-1",
        "--workers",
        1,
        "-o",
        file,
        "--plot",
        picture,
    )
    done = cli(*arguments, "--json")
    rows = json.loads(done.out)
    assert [row["planner.microbatch"] for row in rows] == [1, 2, -1]
    assert [row["error"] is None for row in rows] == [True, True, False]
    assert file.exists()
    assert picture.exists()
    assert "planner.microbatch" in cli(*arguments).out


def test_the_catalogue_is_listed_and_shown(cli: Cli) -> None:
    assert "h100_sxm" in cli("catalog").out
    assert set(json.loads(cli("catalog", "--json").out)) == {"devices", "links", "stores"}
    entry = json.loads(cli("catalog", "devices", "h100_sxm", "--json").out)
    assert entry["sources"]["memory_B"]
    assert "sources.memory_B" in cli("catalog", "devices", "h100_sxm").out
    unknown = cli("catalog", "devices", "h100_sxn")
    assert unknown.code == 2
    assert "h100_sxm" in unknown.err
    assert "devices" in cli("catalog", "device").err


def test_the_schema_is_json_and_can_be_written(cli: Cli, tmp_path: Path) -> None:
    assert json.loads(cli("schema").out)["properties"]["cluster"]
    cli("schema", "-o", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text())["properties"]["planner"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "nowhere.yaml"), "nowhere.yaml"),
        (("run", "TOY", "--set", "cluster.nodes=0", "--set", "planner.zero=9"), "- planner.zero"),
        (("run", "TOY", "--set", "cluster.nodes"), "path=value"),
        (("run", "TOY", "--backend", "imaginary"), "backend"),
        (("run", "TOY", "--plan", "TOY"), "plan"),
        (("run", "TOY", "--plan", "none.json"), "none.json"),
        (("run", "TOY", "--plot"), "--out"),
        (("run", "TOY", "--out", "TOY/below"), "TOY"),
        (("run", "TOY", "--set", "workload.model=gpt3_175b"), "memory"),
        (("sweep", "TOY", "--over", "seed"), "path=value"),
        (("sweep", "TOY", "--over", "seed=1,2", "-o", "out.xlsx"), "parquet"),
        (("compare", "--traces", "TOY", "TOY"), "trace"),
        (("fly",), "fly"),
        (("run",), "SCENARIO"),
    ],
)
def test_mistakes_exit_with_2_and_a_message(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    toy = str(write_scenario(tmp_path))
    done = cli(*(a.replace("TOY", toy) for a in arguments))
    assert done.code == 2
    assert done.out == ""
    assert says.replace("TOY", toy) in done.err
    assert "Traceback" not in done.err


def windtunnel(*arguments: object, folder: Path) -> subprocess.Popen[bytes]:
    code = "from simcore.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def long_run(folder: Path) -> Path:
    """A scenario that writes for a while: many iterations make a long trace."""
    scenario = yaml.safe_load(write_scenario(folder).read_text())
    scenario["workload"]["iterations"] = 4000
    return write_scenario(folder, yaml.safe_dump(scenario))


def wait_for(process: subprocess.Popen[bytes], out: Path, begun: str) -> None:
    """Until a file whose name holds `begun` is there, under its own name or a temporary one, or the process is over."""
    while process.poll() is None and not (out.exists() and any(begun in path.name for path in out.iterdir())):
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("begun", ["plan.json", "trace.json.gz"])
def test_a_killed_run_leaves_no_half_written_file(tmp_path: Path, number: signal.Signals, begun: str) -> None:
    out = tmp_path / "out"
    process = windtunnel("run", long_run(tmp_path), "--out", out, folder=tmp_path)
    wait_for(process, out, begun)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 128 + number, -number)
    assert b"Traceback" not in err
    found = {path.name: path for path in out.iterdir()}
    if "plan.json" in found:
        assert Plan.load(found["plan.json"]).n_ranks == 4
    if "trace.json.gz" in found:
        assert len(read_trace(found["trace.json.gz"])) > 0
    if "report.json" in found:
        assert json.loads(found["report.json"].read_text())["metrics"]["iterations"] == 4000
    if number != signal.SIGKILL:
        assert [name for name in found if name.startswith(".")] == []


def test_help_lists_every_command(cli: Cli) -> None:
    text = cli("--help").out
    for command in ("plan", "check", "run", "compare", "sweep", "calibrate", "validate", "catalog", "schema"):
        assert command in text
        assert cli(command, "--help").code == 0
