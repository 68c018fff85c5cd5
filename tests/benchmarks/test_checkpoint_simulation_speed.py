"""Checkpoints of 10,000 ranks, planned and simulated by the command line: seconds and peak memory, beside 2,400 ranks; and who
writes which of eight million shards, all listed.

`make benchmark` prints the table.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "bytecheckpoint_tgpt_70b_2400.yaml"
MEASURED = (
    "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(done.returncode)"
)
"""Runs a command and says its peak memory in KiB in the last line of stderr."""
WIDE = ("cluster.nodes=1250", "planner.tp=8", "planner.pp=2", "planner.resumed.dp=600", "workload.global_batch=1250")
"""10,000 ranks in 625 replicas."""
SHARDED = (
    *("cluster.nodes=1250", "planner.tp=1", "planner.pp=1", "planner.resumed.dp=5000", "workload.global_batch=10000"),
    *("planner.zero=3", "planner.recompute=full", "planner.detail=chunk", "workload.model=tgpt_13b"),
    "workload.loader=1 MB",
)
"""10,000 ranks, fully sharded."""


@pytest.mark.benchmark(group="checkpoints of a training job")
@pytest.mark.parametrize(
    "changes", [(), WIDE, SHARDED], ids=["2,400 ranks", "10,000 ranks, Megatron", "10,000 ranks, FSDP"]
)
def test_planned_and_simulated(benchmark: BenchmarkFixture, changes: tuple[str, ...]) -> None:
    """All of a run with the baselines of the scenario, from the start of the process."""
    windtunnel = Path(sys.executable).with_name("windtunnel")
    command = [sys.executable, "-c", MEASURED, windtunnel, "run", SCENARIO, "--json"]
    for change in changes:
        command += ["--set", change]

    def run() -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    done = benchmark.pedantic(run, rounds=1, warmup_rounds=0)
    report = json.loads(done.stdout)
    assert report["ranks"] == (10_000 if changes else 2400)
    assert report["decisions"]["predicted"]["save_s"] > report["decisions"]["predicted"]["stall_s"] > 0
    peak_B = int(done.stderr.split()[-1]) * 1024
    benchmark.extra_info["peak_memory_GB"] = round(peak_B / 1e9, 2)
    assert peak_B < 2e9


LISTED = """
from simcore.checkpoint.layouts import Mesh, Placement, layout
from simcore.checkpoint.saving import save_plan
from simcore.checkpoint.shards import TensorSpec
tensors = [TensorSpec(f"layer{i // 8}.w{i % 8}", (16384, 4096), "float32") for i in range(1000)]
shards = layout(tensors, [Placement(dp="shard")] * 1000, Mesh(dp=10_000))
print(len(save_plan(shards).shards))
"""


@pytest.mark.benchmark(group="checkpoints of a training job")
def test_every_shard_of_ten_thousand_ranks_listed(benchmark: BenchmarkFixture) -> None:
    """The functions that a real save plans with, on 1,000 tensors whose rows 10,000 ranks share: checked, balanced and placed."""
    command = [sys.executable, "-c", MEASURED, sys.executable, "-c", LISTED]
    done = benchmark.pedantic(
        lambda: subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True),
        rounds=1,
        warmup_rounds=0,
    )
    peak_B = int(done.stderr.split()[-1]) * 1024
    benchmark.extra_info |= {"shards": int(done.stdout), "peak_memory_GB": round(peak_B / 1e9, 2)}
    assert int(done.stdout) == 1000 * 8192
    assert peak_B < 2e9
