"""Planned precisions in unchanged modules: names, casts, state, and what is refused."""

import random
from collections import Counter

import pytest
import torch
from torch import nn

from costmodels.operator_graph import named
from costmodels.precision import PRECISIONS, allowed, casts, flows
from real.precision.binding import bind
from real.precision.models import build
from real.precision.statistics import of_model
from simcore.errors import CannotRun, PlanError


class Log:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def begin(self, operator: str, way: str) -> None:
        self.told.append(("begin", operator, way))

    def end(self, operator: str, way: str) -> None:
        self.told.append(("end", operator, way))


def at_random(graph, seed: int) -> dict[str, str]:
    draw = random.Random(seed)
    return {o.name: draw.choice(allowed(o, PRECISIONS)) for o in graph if allowed(o, PRECISIONS)}


@pytest.mark.parametrize("name", ["small_resnet", "small_transformer"])
@pytest.mark.parametrize("seed", range(3))
def test_casts_are_exactly_those_that_the_rules_list(name, seed) -> None:
    graph, chosen, done, log = named(name), at_random(named(name), seed), [], Log()
    torch.manual_seed(seed)
    model = build(name)
    bound = bind(model.module, graph, chosen, PRECISIONS, emulate=seed % 2 == 1, on_cast=done.append, observer=log)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    inputs, targets = model.example(3)
    with bound:
        loss = model.objective(inputs, targets)
    loss.backward()
    bound.close()
    assert Counter(done) == Counter(casts(graph, flows(graph, chosen, PRECISIONS), 3))
    assert len(done) > 20
    assert {key: value.dtype for key, value in model.module.state_dict().items()} == {
        key: value.dtype for key, value in before.items()
    }
    for key, parameter in model.module.named_parameters():
        assert torch.equal(parameter, before[key])
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()
    _check_observed(log, graph)


def _check_observed(log: Log, graph) -> None:
    """Every operator begins and ends once each way, one after the other, in the graph's order and in reverse."""
    forward = [t for t in log.told if t[2] == "forward"]
    assert forward == [(what, o.name, "forward") for o in graph for what in ("begin", "end")]
    backward = [t for t in log.told if t[2] == "backward"]
    assert Counter(backward) == Counter((what, o.name, "backward") for o in graph for what in ("begin", "end"))
    assert all(a[0] == "begin" and b == ("end", *a[1:]) for a, b in zip(backward[::2], backward[1::2], strict=True))


def test_float32_changes_no_number() -> None:
    torch.manual_seed(0)
    model, graph = build("small_transformer"), named("small_transformer")
    model.module.eval()
    inputs, targets = model.example(2)
    plain = model.objective(inputs, targets)
    plain.backward()
    gradients = [p.grad.clone() for p in model.module.parameters()]
    model.module.zero_grad()
    bound = bind(model.module, graph, {}, PRECISIONS)
    with bound:
        loss = model.objective(inputs, targets)
    loss.backward()
    assert torch.equal(loss, plain)
    assert all(torch.allclose(p.grad, g, atol=1e-7) for p, g in zip(model.module.parameters(), gradients, strict=True))


def test_all_wrong_choices_are_named_at_once() -> None:
    model, graph = build("small_resnet"), named("small_resnet")
    wrong = {"nowhere": "int8", "conv1": "float16", "bn1": "float16"}
    with pytest.raises(PlanError) as caught:
        bind(model.module, graph, wrong, ("int8", "float32"), rounding="stochastic")
    assert [p.field for p in caught.value.problems] == [
        *("precision.nowhere", "precision.conv1", "precision.bn1", "generator"),
    ]


def test_another_module_is_refused() -> None:
    with pytest.raises(CannotRun, match="is not 'small_resnet'"):
        bind(nn.Linear(3, 4), named("small_resnet"), {}, PRECISIONS)


def test_statistics_cover_the_graph() -> None:
    found = of_model("small_resnet", batch=4, iterations=2, seed=1)
    graph = named("small_resnet")
    found.check(graph)
    conv = found.operators["conv1"]
    assert found.samples == 4
    assert conv.D_v == 4 * 28 * 28 and conv.D_vv == graph["conv1"].output.elements(4)
    assert conv.norm_v == pytest.approx(conv.D_v**0.5, rel=0.1)  # inputs are normal
    assert all(s.norm_g > 0 and s.norm_dw is not None for s in found.operators.values())
