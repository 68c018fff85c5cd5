"""What a rank has before it trains, and what no memory model counts: the graph, the data, and libraries that have started."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from costmodels.operator_graph import OperatorGraph
from costmodels.precision import ADJUSTABLE
from real.precision.batches import Batches
from real.precision.binding import bind
from real.precision.models import Model, build
from real.precision.placing import place_of
from real.precision.tracing import trace
from simcore.errors import CannotRun, Problem
from simcore.plan import Plan


@dataclass(frozen=True, slots=True)
class Materials:
    """The graph of the plan's model as it is now, and the batches of one rank."""

    graph: OperatorGraph
    batches: Batches


def gather(plan: Plan, rank: int, device: torch.device, has: Collection[str]) -> Materials:
    """Raises `CannotRun` for a plan of operators that the model does not have."""
    model = build(plan.workload["model"])
    graph, place, seed = trace(model), place_of(plan, rank), int(plan.workload["seed"])
    planned = {name for chosen in plan.decisions["precision"].values() for name in chosen}
    unknown = sorted(planned - set(graph.index))
    if unknown:
        given = ", ".join(unknown[:5])
        problem = Problem(
            "decisions.precision", given, f"operators of {graph.name}", "Plan it with the model as it is now."
        )
        raise CannotRun("a plan for another model", [problem])
    batches = Batches(model, seed=seed, global_batch=place.total, first=place.first, count=place.count)
    for precision in has:
        _start_libraries(device, has, precision)
    return Materials(graph, batches)


def _start_libraries(device: torch.device, has: Collection[str], precision: str) -> None:
    """A step of a tiny network: what is loaded or compiled at first use is there afterwards."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 8))
    model = Model(
        name="tiny",
        source="",
        sample="",
        module=net,
        example=lambda n: ((torch.randn(n, 8, 4, 4),), torch.randint(8, (n,))),
        loss=functional.cross_entropy,
    )
    graph = trace(model)
    net.to(device)
    chosen = {operator.name: precision for operator in graph if operator.kind in ADJUSTABLE}
    bound = bind(net, graph, chosen, has)
    inputs, targets = model.example(4)
    with bound:
        loss = model.objective([x.to(device) for x in inputs], targets.to(device))
    loss.backward()
    for optimizer in (
        torch.optim.SGD(net.parameters(), lr=0.0, fused=True),
        torch.optim.AdamW(net.parameters(), fused=True),
    ):
        optimizer.step()
    bound.close()
