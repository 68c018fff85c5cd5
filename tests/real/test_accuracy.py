"""Training in low precision, small: losses fall, and int8 disturbs the first step more than float16 does."""

from dataclasses import replace

import torch
from torch.nn import functional

from costmodels.precision import allowed
from real.precision.accuracy import HAS, TASKS, choose, model_of, train
from real.precision.binding import bind
from real.precision.digits import images
from real.precision.tracing import trace

TASK = replace(TASKS[0], epochs=2, batch=32, data=images)


def small(split):
    return replace(split, inputs=split.inputs[:960], classes=split.classes[:960])


def test_losses_fall_and_half_of_the_operators_are_in_int8() -> None:
    split = small(TASK.data(0))
    graph = trace(model_of(TASK, split))
    for variant in ("int8", "relative"):
        chosen = choose(TASK, graph, split, variant, 0)
        count = sum(p == "int8" for p in chosen.values())
        assert count == (len(chosen) if variant == "int8" else len(chosen) // 2)
        _, losses = train(TASK, graph, split, chosen, 0)
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_int8_disturbs_gradients_more_than_float16() -> None:
    split = small(TASK.data(0))
    graph = trace(model_of(TASK, split))

    def gradient(precision: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = model_of(TASK, split)
        bound = bind(model.module, graph, {o.name: precision for o in graph if allowed(o, HAS)}, HAS)
        with bound:
            loss = functional.cross_entropy(model.module(split.inputs[:64]), split.classes[:64])
        (loss * 1024).backward()
        return torch.cat([p.grad.flatten() for p in model.module.parameters()])

    exact = gradient("float32")
    wrong = {p: float((gradient(p) - exact).norm() / exact.norm()) for p in ("int8", "float16")}
    assert 0 < 5 * wrong["float16"] < wrong["int8"] < 1
