"""Rounds of federated training with every client in each, at 1,000 and 10,000 clients: seconds for each flow, and peak memory.

`make benchmark` prints the table.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from simcore.api import load
from simcore.federated.outcome import Outcome
from simcore.federated.running import Federation, federation_of
from tests.benchmarks.test_checkpoint_simulation_speed import MEASURED

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "fedmoe_phones_10k.yaml"
EVERYBODY = ("workload.clients_per_round=10000", "workload.availability.online=1.0")
"""Nobody is offline or left out, and every round computes the matrix of all experts anew."""
FEWER = tuple(f"cluster.clients.{i}.count={count}" for i, count in enumerate((400, 300, 200, 100)))
seconds_per_flow: dict[int, float] = {}


@cache
def begun(clients: int) -> Federation:
    """After its first round, in which functions are compiled."""
    federation = federation_of(load(SCENARIO, EVERYBODY + (FEWER if clients == 1000 else ())))
    assert federation.clients == clients
    federation.round()
    return federation


@pytest.mark.benchmark(group="rounds in which every client takes part")
@pytest.mark.parametrize("clients", [1000, 10_000])
def test_rounds(benchmark: BenchmarkFixture, clients: int) -> None:
    federation, found = begun(clients), list[Outcome]()
    benchmark.pedantic(lambda: found.append(federation.round()), rounds=20_000 // clients + 3)
    flows = min(o.flows for o in found)
    assert flows > 7 * clients
    seconds_per_flow[clients] = benchmark.stats.stats.min / flows
    benchmark.extra_info["us_per_flow"] = round(1e6 * seconds_per_flow[clients], 2)


def test_ten_times_the_clients_cost_no_more_for_each_flow() -> None:
    """Baseline: 1,000 clients in the same run. Twice is left for caches that hold less of more."""
    if len(seconds_per_flow) < 2:
        pytest.skip("needs both measurements of test_rounds")
    assert seconds_per_flow[10_000] < 2 * seconds_per_flow[1000]


@pytest.mark.benchmark(group="rounds of 10,000 clients from the command line")
def test_command(benchmark: BenchmarkFixture) -> None:
    """Three rounds from the start of the process, and its peak memory."""
    windtunnel = Path(sys.executable).with_name("windtunnel")
    command = [sys.executable, "-c", MEASURED, windtunnel, "rounds", SCENARIO, "--count", "3"]
    for change in EVERYBODY:
        command += ["--set", change]

    def run() -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    peak_B = int(benchmark.pedantic(run, rounds=1).stderr.split()[-1]) * 1024
    benchmark.extra_info["peak_memory_GB"] = round(peak_B / 1e9, 2)
    assert peak_B < 2e9
