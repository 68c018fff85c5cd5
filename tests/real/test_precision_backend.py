"""Plans of mixed precision run on two processes; what cannot run is refused, and memory limits hold."""

from dataclasses import replace

import pytest

from costmodels.catalog import Catalog
from costmodels.operator_graph import OperatorGraph
from real.backend import RealBackend
from real.precision.drafting import Part, draft
from real.precision.models import build
from real.precision.profiling import jobs_of, uniform
from real.precision.tracing import trace
from simcore.cluster import Cluster
from simcore.errors import CannotRun, InputError
from simcore.plan import Compute, Plan
from simcore.topologies import single_node

HAS = ("int8", "bfloat16", "float32")


@pytest.fixture(scope="module")
def graph() -> OperatorGraph:
    return trace(build("small_resnet"))


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    params = single_node.Params(device="server_cpu", devices_per_node=2, intra="loopback")
    found = single_node.build(params, Catalog())
    device = replace(found.devices[0], flop_per_s=dict.fromkeys(HAS, 1e11))
    return replace(found, devices=(device,))


def plan_of(graph: OperatorGraph, cluster: Cluster, *precisions: str, batch: tuple[int, int] = (24, 8)) -> Plan:
    parts = {
        f"rank{r}": Part(ranks=(r,), device=cluster.device(r), batch=batch[r], precision=uniform(graph, p, HAS))
        for r, p in enumerate(precisions)
    }
    return draft(graph, "small_resnet", parts, optimizer="adamw", iterations=8, first_bucket_B=1e5, bucket_B=1e5)


@pytest.mark.slow
def test_two_ranks_of_unequal_precision_and_batch_train_one_model(graph: OperatorGraph, cluster: Cluster) -> None:
    plan = plan_of(graph, cluster, "float32", "int8")
    trace = RealBackend(cluster=cluster).run(plan)
    assert trace.extra["loss"][-1] < trace.extra["loss"][0] - 0.3
    for rank in range(2):
        ran = {plan.tasks[t].id for t in trace.task[trace.lane == rank]}
        own = {t.id for t in plan.tasks if isinstance(t.op, Compute) and t.op.group == f"rank{rank}"}
        sums = {t.id for t in plan.tasks if not isinstance(t.op, Compute)}
        assert len(sums) > 1
        assert ran <= own | sums
        assert len(own - ran) < len(own) / 10  # what takes less than two microseconds leaves no span
        assert sums <= ran
    first, second = (memory["allocated"] for memory in trace.memory_B)
    assert first > second


@pytest.mark.slow
def test_a_rank_that_needs_more_than_its_limit_says_so(graph: OperatorGraph, cluster: Cluster) -> None:
    plan = plan_of(graph, cluster, "float32", "float32")
    limited = replace(plan, decisions={**plan.decisions, "memory_limit_B": {"rank1": 1e6}})
    with pytest.raises(CannotRun, match=r"memory of rank 1.*1\.0 MB"):
        RealBackend(cluster=cluster).run(limited)
    unforeseen = replace(limited, memory_B={}, tasks=tuple(replace(t, activation_B=0.0) for t in plan.tasks))
    with pytest.raises(CannotRun, match=r"rank 1.*limit") as caught:
        RealBackend(cluster=cluster).run(unforeseen)
    assert "1.0 MB" in str(caught.value)


def test_what_cannot_run_is_refused_with_what_to_change(graph: OperatorGraph, cluster: Cluster) -> None:
    plan = plan_of(graph, cluster, "float32", "float32")
    backend = RealBackend(cluster=cluster)
    assert not backend.check(plan)
    wrong = replace(
        plan,
        workload={**plan.workload, "optimizer": "lion"},
        decisions={**plan.decisions, "precision": {"rank0": {}}, "batch": {}},
    )
    assert [p.field for p in backend.check(wrong)] == ["workload.optimizer", "decisions.precision", "decisions.batch"]
    without = replace(plan, decisions={})
    assert [p.field for p in backend.check(without)] == ["decisions"]


def test_what_to_profile_is_a_scenario_or_a_model_with_its_batches(tmp_path) -> None:  # type: ignore[no-untyped-def]
    jobs = jobs_of("small_resnet:8,16:adamw", tmp_path)
    assert [(job.model, job.batch, job.optimizer) for job in jobs] == [
        ("small_resnet", 8, "adamw"),
        ("small_resnet", 16, "adamw"),
    ]
    for given in ("small_resnet", "small_resnet:0", "nothing:8"):
        with pytest.raises(InputError, match="MODEL:BATCH"):
            jobs_of(given, tmp_path)
