"""Iteration times that were published, against the simulator. Nothing in the models was fitted to these rows.

Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", tables 3 and 5 (A100, TP 8).
Grattafiori et al. 2024, "The Llama 3 Herd of Models", table 4 (H100).
"""

from pathlib import Path

import pytest

from simcore.reporting.report import report
from simcore.scenario import load
from simcore.sim import SimBackend

SCENARIOS = Path(__file__).parents[2] / "scenarios"

# model, hosts (and pipeline stages), chunks, global batch, microbatch, recompute, seconds
KORTHIKANTI = [
    ("megatron_22b", 1, 1, 4, 4, "full", 1.42),
    ("megatron_22b", 1, 1, 4, 4, "selective", 1.10),
    ("gpt3_175b", 8, 3, 64, 1, "full", 18.13),
    ("gpt3_175b", 8, 3, 64, 1, "selective", 13.75),
    pytest.param("megatron_530b", 35, 3, 280, 1, "full", 49.05, marks=pytest.mark.slow),
    pytest.param("megatron_530b", 35, 3, 280, 1, "selective", 37.83, marks=pytest.mark.slow),
    pytest.param("megatron_1t", 64, 1, 512, 1, "full", 94.42, marks=pytest.mark.slow),
    pytest.param("megatron_1t", 64, 1, 512, 1, "selective", 71.49, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "hosts", "vpp", "batch", "microbatch", "recompute", "published_s"), KORTHIKANTI)
def test_megatron_on_a100(
    model: str, hosts: int, vpp: int, batch: int, microbatch: int, recompute: str, published_s: float
) -> None:
    """Full recomputation without sequence parallelism, selective with it, as in table 5."""
    scenario = load(
        SCENARIOS / "gpt3_175b_a100.yaml",
        (
            f"cluster.nodes={hosts}",
            f"workload.model={model}",
            f"workload.global_batch={batch}",
            f"planner.pp={hosts}",
            f"planner.vpp={vpp}",
            f"planner.microbatch={microbatch}",
            f"planner.recompute={recompute}",
            f"planner.sequence_parallel={str(recompute == 'selective').lower()}",
        ),
    )
    assert SimBackend.from_scenario(scenario).run(scenario.plan()).makespan_s == pytest.approx(published_s, rel=0.15)


def test_llama_405b_on_16384_h100() -> None:
    """400 TFLOP/s for each GPU; without recomputation it fits into 80 GB, which the simulator checks before it runs."""
    scenario = load(SCENARIOS / "llama3_405b_16k.yaml")
    plan = scenario.plan()
    found = report(plan, SimBackend.from_scenario(scenario).run(plan)).metrics
    assert found["flop_per_s_per_device"] == pytest.approx(400e12, rel=0.12)
    assert plan.n_ranks == 16384
    assert 10_000 <= len(plan.tasks) <= 30_000
