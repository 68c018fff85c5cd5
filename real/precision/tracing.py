"""A torch module as an `OperatorGraph`: its forward pass and loss run on the meta device, with sizes and without numbers."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from costmodels.operator_graph import Attribute, Extent, Operator, OperatorGraph
from real.precision.models import Model, build
from real.precision.watching import SUMS, Call, Watching, tensors
from simcore.errors import InputError, Problem

BATCHES = (2, 3)
"""Two batches tell which dimension of a tensor grows with the batch; 1 is none of them, since models squeeze it away."""


def trace(model: Model) -> OperatorGraph:
    """The operators of a training step's forward pass and loss, in train mode.

    `model.module` stays as it is: a copy of it without numbers runs. Raises `InputError` for a model that needs numbers to run (it
    branches on values), and for tensors that do not grow linearly with the batch along one dimension.
    """
    model = replace(model, module=_without_numbers(model.module).train())
    module = model.module
    small, large = (_run(model, module, batch) for batch in BATCHES)
    if [seen.name for seen in small] != [seen.name for seen in large]:
        problem = Problem("model", f"{len(small)} operators at batch 2, {len(large)} at batch 3", "the same operators")
        raise InputError(f"{model.name} computes different operators for different batches", [problem])
    problems: list[Problem] = []
    depths: dict[str, int] = {}
    operators = tuple(_operator(a, b, depths, problems) for a, b in zip(small, large, strict=True))
    if problems:
        raise InputError(f"{model.name} cannot be described for one sample", problems)
    sizes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    return OperatorGraph(
        name=model.name, source=model.source, sample=model.sample, operators=operators, parameters=sizes
    )


def trace_named(spec: str) -> OperatorGraph:
    """`trace` of what `models.build` makes of `spec`; no memory is taken for its weights."""
    with torch.device("meta"):
        return trace(build(spec))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """One call at one batch: sizes of what it reads and makes."""

    name: str
    kind: str
    producers: list[str | None]
    operands: list[torch.Size]
    output: torch.Size
    parameters: tuple[str, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    differentiable: bool


def _without_numbers(module: nn.Module) -> nn.Module:
    """A copy on the meta device in which weights that modules share stay shared; `Module.to` would part them."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in module.parameters()
    }
    empty |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return deepcopy(module, empty)


def _run(model: Model, module: nn.Module, batch: int) -> list[_Seen]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: list[_Seen] = []

    def perform(call: Call) -> Any:
        operands = call.operands
        producers, sizes = [watching.producer(t) for t in operands], [t.shape for t in operands]
        result = call()
        made = [t for t in tensors(call.args[0] if result is None else result) if t.is_floating_point()]
        if made:
            seen = _Seen(
                name=call.name,
                kind=call.kind,
                producers=producers,
                operands=sizes,
                output=_whole(made, operands),
                parameters=tuple(names[id(p)] for p in call.parameters if id(p) in names),
                attributes=attributes(call),
                differentiable=any(t.requires_grad for t in made),
            )
            found.append(seen)
        return result

    watching = Watching(module, perform)
    try:
        with torch.device("meta"):
            inputs, targets = model.example(batch)
            with watching:
                model.objective(inputs, targets)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, KeyError) as error:
        after = f", after operator {found[-1].name!r}" if found else ""
        problem = Problem(
            "model",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else error!r}{after}",
            "a forward pass that asks for no tensor's numbers and makes its tensors on the device of its inputs",
            "Give inputs that avoid the branch, or wrap the module in one that does.",
        )
        raise InputError(f"{model.name} does not run on the meta device", [problem]) from error
    finally:
        watching.remove()
    return found


def _whole(made: list[Tensor], operands: list[Tensor]) -> torch.Size:
    """Of several results, as of a split, all elements: sizes of the operand that they share out, else of the first result."""
    if len(made) > 1 and operands and sum(t.numel() for t in made) == operands[0].numel():
        return operands[0].shape
    return made[0].shape


def _operator(small: _Seen, large: _Seen, depths: dict[str, int], problems: list[Problem]) -> Operator:
    edges = [(name, place) for place, name in enumerate(small.producers) if name is not None]
    depths[small.name] = max((depths[name] + 1 for name, _ in edges), default=0)
    output, *operands = (
        _extent(small.name, a, b, problems)
        for a, b in zip((small.output, *small.operands), (large.output, *large.operands), strict=True)
    )
    return Operator(
        name=small.name,
        kind=small.kind,
        inputs=tuple(name for name, _ in edges),
        sources=tuple(place for _, place in edges),
        operands=tuple(operands),
        output=output,
        parameters=small.parameters,
        attributes=small.attributes,
        depth=depths[small.name],
        differentiable=small.differentiable,
    )


def _extent(name: str, small: torch.Size, large: torch.Size, problems: list[Problem]) -> Extent:
    """What one sample has of a tensor, from its sizes at `BATCHES`."""
    first, second = BATCHES
    grown = [i for i, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
    if len(grown) > 1 or any(small[i] * second != large[i] * first for i in grown):
        problem = Problem(
            name, f"sizes {tuple(small)} at batch {first}, {tuple(large)} at batch {second}", "one that is a multiple"
        )
        problems.append(problem)
        return Extent(tuple(small), None)
    axis = grown[0] if grown else None
    return Extent(tuple(n // first if i == axis else n for i, n in enumerate(small)), axis)


def attributes(call: Call) -> dict[str, Attribute]:
    """What the sizes of an operator do not tell and its cost depends on."""
    found = dict(_attributes(call))
    return {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in found.items()}


def _attributes(call: Call) -> Iterator[tuple[str, Any]]:
    name = call.func.__name__.strip("_")
    if call.kind == "conv2d":
        yield from _given(call, 3, stride=1, padding=0, dilation=1, groups=1)
    elif call.kind in ("max_pool2d", "avg_pool2d"):
        yield from _given(call, 1, kernel_size=None, stride=None, padding=0)
    elif call.kind in ("softmax", "log_softmax", "cat"):
        yield from _given(call, 1, dim=-1)
    elif call.kind == "linear" and name != "linear":
        yield "transposed", 1
    elif call.kind == "matmul" and name in SUMS:
        yield "summand", 1


def _given(call: Call, first: int, **defaults: Any) -> Iterator[tuple[str, Any]]:
    """Arguments by position from `first`, or by name; those that are None are left out."""
    for place, (name, default) in enumerate(defaults.items(), first):
        value = call.args[place] if len(call.args) > place else call.kwargs.get(name, default)
        if value is not None:
            yield name, value
