"""How long placements are searched for; the largest setting of HybridFlow's figure 16 took the paper about 1,520 s."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from simcore.hybridflow.search import Mode
from tests.unit.test_hybridflow_rows import planning


@pytest.mark.benchmark(group="placements of four models of RLHF")
@pytest.mark.parametrize(("model", "ranks"), [("llama2_7b", 16), ("llama2_13b", 32), ("llama2_70b", 128)])
@pytest.mark.parametrize("mode", ["pruned", "exhaustive"])
def test_search(benchmark: BenchmarkFixture, model: str, ranks: int, mode: Mode) -> None:
    """On one core, from a workload and a cluster to the decision, with every price asked for the first time."""
    decision, counts = benchmark.pedantic(lambda: planning("ppo", model, ranks).search(mode), rounds=1)
    benchmark.extra_info["placements"] = counts.complete
    assert counts.placements == 15
    assert decision.seconds > 0
