"""The memory that a plan is predicted to take, against what torch allocates in a step."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from costmodels.catalog import Catalog
from costmodels.precision import of_device
from real.precision.allocations import peak_B, standing
from real.precision.binding import bind
from real.precision.models import Model, build
from real.precision.products import widened_here
from real.precision.profiling import uniform
from real.precision.tracing import trace
from simcore.cost import CostModel
from simcore.qsync.peak import memory_B
from simcore.qsync.settings import setting
from simcore.qsync.tables import local_graph
from simcore.topologies import single_node

CPU = "server_cpu"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("name", "batch"), [("small_resnet", 48), ("small_transformer", 16)])
def test_the_peak_of_a_step_is_within_five_per_cent(name: str, batch: int, precision: str) -> None:
    cluster = single_node.build(single_node.Params(device=CPU, devices_per_node=1), Catalog())
    device, model = cluster.device(0), build(name)
    device = replace(device, measured={**device.measured, "widened": widened_here()})
    graph, has = trace(model), of_device(device)
    local = local_graph(graph, device, batch, CostModel(cluster), optimizer="sgd", buckets=[list(graph.parameters)])
    chosen = uniform(graph, precision, has)
    bound = bind(model.module.train(), graph, chosen, has)
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.0)
    inputs, targets = model.example(batch)
    step = partial(_step, model, bound, inputs, targets)
    step()
    gradients = [p.grad for p in model.module.parameters() if p.grad is not None]
    measured = peak_B(step, standing(model.module, optimizer, gradients))
    bound.close()
    assert memory_B(local, setting(local, chosen)) == pytest.approx(measured, rel=0.05)


def _step(model: Model, bound: object, inputs: object, targets: object) -> None:
    with bound:  # type: ignore[attr-defined]
        loss = model.objective(inputs, targets)
    loss.backward()
