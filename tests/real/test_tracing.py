"""Traced graphs: the same operators as a real run, edges along the data, and files that come out the same again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from costmodels.operator_graph import HERE, OperatorGraph
from real.precision.models import Model, build
from real.precision.tracing import trace, trace_named
from real.precision.watching import Call, Watching, tensors
from simcore.errors import InputError

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 12}


def config(folder: Path, architecture: str, model_type: str, **sizes: int) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({"architectures": [architecture], "model_type": model_type, **sizes}))
    return str(path)


@pytest.fixture(
    params=[
        "small_resnet",
        "small_transformer",
        "BertForQuestionAnswering",
        "GPT2LMHeadModel",
        "RobertaForMultipleChoice",
    ]
)
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param.startswith("GPT2"):
        return config(tmp_path, request.param, "gpt2", **GPT2)
    if request.param.startswith("Roberta"):
        return config(tmp_path, request.param, "roberta", **TINY, max_position_embeddings=16, type_vocab_size=1)
    if request.param.startswith("Bert"):
        return config(tmp_path, request.param, "bert", **TINY, max_position_embeddings=12)
    return str(request.param)


def really(model: Model, batch: int) -> list[tuple[str, str, tuple[int, ...], list[tuple[int, ...]]]]:
    """Name, kind, size of the result and of the operands of every operator of a run with numbers."""
    seen = []

    def perform(call: Call) -> Any:
        operands = [tuple(t.shape) for t in call.operands]
        result = call()
        if call.kind != "split":
            seen.append((call.name, call.kind, tuple(next(tensors(result)).shape), operands))
        return result

    watching = Watching(model.module.train(), perform)
    inputs, targets = model.example(batch)
    with watching:
        loss = model.objective(inputs, targets)
    watching.remove()
    loss.backward()
    return seen


def test_a_run_with_numbers_meets_the_operators_of_the_graph_in_its_sizes(spec: str) -> None:
    found = really(build(spec), 3)
    expected = [
        (o.name, o.kind, o.output.at(3), [e.at(3) for e in o.operands]) for o in trace_named(spec) if o.kind != "split"
    ]
    assert found == expected


def test_names_are_the_same_in_every_pass_and_hooks_go_away() -> None:
    model = build("small_transformer")
    first, second = ([name for name, *_ in really(model, 2)] for _ in range(2))
    assert first == second
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


def test_what_perform_returns_takes_the_place_of_the_result() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    watching = Watching(module, lambda call: call() * 0 if call.name == "0" else call() + 1)
    with watching:
        found = module(torch.randn(2, 4))
    assert torch.equal(found, torch.ones(2, 4))


@pytest.mark.parametrize("name", ["small_resnet", "small_transformer", "resnet50", "gpt2"])
def test_a_shipped_graph_is_traced_again_byte_for_byte(name: str) -> None:
    """Names releases in its source; CI pins them. Otherwise the operators must still be the same."""
    shipped = OperatorGraph.from_json((HERE / f"{name}.json").read_text())
    again = trace_named(name)
    assert again.operators == shipped.operators
    if again.source == shipped.source:
        assert again.to_json() == (HERE / f"{name}.json").read_text()


class Residual(nn.Module):
    """A shared layer, in-place sums, an in-place change through a view, and a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)
        self.table = nn.Embedding(5, 6)
        self.out = nn.Linear(6, 5, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        y = self.fc(x)
        y += x
        z = self.fc(self.relu(y))
        z[:, 0].mul_(2)
        mask = torch.ones(tokens.shape, device=tokens.device).unsqueeze(-1)
        return self.out(z * mask)


def example(module: nn.Module, draw: Callable[[int], Any]) -> Model:
    return Model(
        name="by_hand",
        source="by hand",
        sample="3 tokens",
        module=module,
        example=lambda batch: ((draw(batch),), None),
        loss=lambda outputs, _: outputs.sum(),
    )


def test_edges_follow_the_data() -> None:
    graph = trace(example(Residual(), lambda batch: torch.zeros(batch, 3, dtype=torch.long, device="meta")))
    assert {o.name: o.inputs for o in graph} == {
        "table": (),
        "fc": ("table",),
        "self/add": ("fc", "table"),
        "relu": ("self/add",),
        "fc/linear.1": ("relu",),
        "self/getitem": ("fc/linear.1",),
        "self/mul": ("self/getitem",),
        "self/mul.1": ("self/mul",),
        "out": ("self/mul.1",),
        "loss/sum": ("out",),
    }
    assert graph["out"].parameters == graph["table"].parameters == ("table.weight",)
    assert graph["fc/linear.1"].parameters == ("fc.weight", "fc.bias")
    assert list(graph.parameters) == ["fc.weight", "fc.bias", "table.weight"]
    assert [graph["self/mul.1"].operands[i].at(4) for i in (0, 1)] == [(4, 3, 6), (4, 3, 1)]


class Products(nn.Module):
    """A product with a weight on the right, as in GPT-2, with a summand of activations, and casts that a model asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 4))
        self.part = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x).to(torch.float32)
        scores = torch.baddbmm(y, y, y.type(torch.float64))
        return torch.addmm(self.weight[0], scores.flatten(0, 1), self.weight).half()


def test_products_with_a_weight_are_linear_and_those_of_activations_are_matmul() -> None:
    graph = trace(example(Products(), lambda batch: torch.zeros(batch, 6, 6, device="meta")))
    kinds = {o.name: (o.kind, dict(o.attributes)) for o in graph}
    assert kinds["self/matmul"] == ("matmul", {"summand": 1})
    assert kinds["self/linear"] == ("linear", {"transposed": 1})
    assert not {"to", "type", "half"} & {kind for kind, _ in kinds.values()}
    assert graph["self/linear"].output.at(5) == (30, 4)
    assert graph["loss/sum"].inputs == ("self/linear",)


class Branching(nn.Module):
    """Asks for a number, which the meta device has none of."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y if y.sum().item() > 0 else -y


class AllPairs(nn.Module):
    """Scores of every sample with every other: no size for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y @ y.t()


def test_a_model_that_needs_numbers_is_refused_with_the_place() -> None:
    with pytest.raises(InputError, match=r"by_hand does not run(.|\n)*after operator 'self/sum'"):
        trace(example(Branching(), lambda batch: torch.zeros(batch, 4, device="meta")))


def test_a_model_whose_tensors_grow_with_the_square_of_the_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"self/matmul: given sizes \(2, 2\) at batch 2, \(3, 3\) at batch 3"):
        trace(example(AllPairs(), lambda batch: torch.zeros(batch, 4, device="meta")))


USERS = """
from torch import nn, zeros

def model():
    return nn.Sequential(nn.Linear(4, 3), nn.GELU()), (zeros(7, 4),)
"""


def test_a_users_function_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_models.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    graph = trace_named("users_models:model")
    assert [(o.name, o.kind, o.output.at(9)) for o in graph] == [("0", "linear", (9, 3)), ("1", "gelu", (9, 3))]


@pytest.mark.parametrize("spec", ["resnet51", "nowhere:model", "math:model", "time:time"])
def test_what_is_no_model_is_said(spec: str) -> None:
    with pytest.raises(InputError):
        build(spec)
