"""A model as a graph of operators: what one training step computes, without places, precisions or durations.

Graphs are data, written by `windtunnel trace-model` from torch modules on the meta device and kept as JSON in `costmodels/graphs`;
reading them needs no torch. Operators stand in the order in which the forward pass calls them, so every producer comes before its
consumers, and the backward pass visits them in reverse.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from costmodels.errors import DataError, Problem
from costmodels.files import write_atomically

FORMAT = 1
HERE = Path(__file__).parent / "graphs"

Size = tuple[int, ...]
Attribute = int | str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Extent:
    """Sizes of a tensor for one sample; `axis` is the dimension that a batch multiplies, None where it multiplies none.

    A batch of 8 of `Extent((12, 384, 384), 0)`, one sample's attention scores with heads folded into it, is (96, 384, 384).
    """

    dims: Size
    axis: int | None = 0

    def at(self, batch: int) -> Size:
        """Sizes for a batch."""
        return tuple(n * batch if i == self.axis else n for i, n in enumerate(self.dims))

    def elements(self, batch: int) -> int:
        """Number of elements for a batch."""
        return prod(self.at(batch))


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One call of the forward pass.

    `name` is the path of the module that makes the call where that is all the module does ("layer1.0.conv1"), otherwise the path
    and the function with its number there ("layer1.0/add", "attention.self/matmul.1"). `kind` is one that `costmodels.precision`
    knows, or any other function's own name. `operands` are the tensors that it reads besides parameters, in the order of the call;
    `inputs` names the producers of those that an operator made, and `sources` are their places among `operands`. `parameters` are
    those it reads, the weight first. `depth` is the longest way from a model input, in operators. `differentiable`: a gradient
    comes back to its output.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    sources: tuple[int, ...] = ()
    operands: tuple[Extent, ...] = ()
    output: Extent
    parameters: tuple[str, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict, hash=False)
    depth: int = 0
    differentiable: bool = True


@dataclass(frozen=True, kw_only=True)
class OperatorGraph:
    """A model's operators, and its parameters with their sizes in the order in which modules registered them.

    `source` says what was traced, with which version; `sample` describes one sample: "3 x 224 x 224 image", "384 tokens".
    """

    name: str
    source: str
    sample: str
    operators: tuple[Operator, ...]
    parameters: Mapping[str, Size]

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each operator by its name."""
        return {operator.name: i for i, operator in enumerate(self.operators)}

    @cached_property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """Names of the operators that read each operator's result, in their order."""
        found: dict[str, list[str]] = {operator.name: [] for operator in self.operators}
        for operator in self.operators:
            for producer in dict.fromkeys(operator.inputs):
                found[producer].append(operator.name)
        return {name: tuple(readers) for name, readers in found.items()}

    @property
    def depth(self) -> int:
        """Operators on the longest way through the model."""
        return max((operator.depth for operator in self.operators), default=0)

    @property
    def elements(self) -> int:
        """Number of all parameters."""
        return sum(prod(size) for size in self.parameters.values())

    def __getitem__(self, name: str) -> Operator:
        return self.operators[self.index[name]]

    def __iter__(self) -> Iterator[Operator]:
        return iter(self.operators)

    def weight(self, operator: Operator) -> Size:
        """Sizes of an operator's weight; () where it has none."""
        return self.parameters[operator.parameters[0]] if operator.parameters else ()

    def to_json(self) -> str:
        """One operator a line, so that differences can be read."""
        head = {"format": FORMAT, "name": self.name, "source": self.source, "sample": self.sample}
        lines = [json.dumps(_row(operator), separators=(",", ":")) for operator in self.operators]
        body = ",\n".join(lines)
        parameters = ",\n".join(
            f"{json.dumps(name)}: {json.dumps(list(size))}" for name, size in self.parameters.items()
        )
        return f'{json.dumps(head)[:-1]},\n"operators": [\n{body}\n],\n"parameters": {{\n{parameters}\n}}}}\n'

    @classmethod
    def from_json(cls, text: str) -> "OperatorGraph":
        """Inverse of `to_json`; raises `DataError` for anything that is not a graph."""
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
            graph = cls(
                name=document["name"],
                source=document["source"],
                sample=document["sample"],
                operators=tuple(_operator(row) for row in document["operators"]),
                parameters={name: tuple(size) for name, size in document["parameters"].items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            problem = Problem("graph", repr(error), "a graph written by `windtunnel trace-model`")
            raise DataError("not a graph of operators", [problem]) from error
        problems = list(_contradictions(graph))
        if problems:
            raise DataError(f"graph {graph.name!r} contradicts itself", problems)
        return graph

    def save(self, path: Path) -> None:
        write_atomically(path, self.to_json())


def load(path: Path) -> OperatorGraph:
    """A graph from its file."""
    return OperatorGraph.from_json(path.read_text())


def names() -> tuple[str, ...]:
    """The graphs that come with the library."""
    return tuple(sorted(path.stem for path in HERE.glob("*.json")))


def named(name: str) -> OperatorGraph:
    """One of `names()`. Raises `DataError` for another."""
    if name not in names():
        advice = "Trace it with `windtunnel trace-model`, and give the path of the file."
        raise DataError("unknown model", [Problem("model", repr(name), ", ".join(names()), advice)])
    return load(HERE / f"{name}.json")


def _row(operator: Operator) -> list[Any]:
    extents = [[list(e.dims), e.axis] for e in (operator.output, *operator.operands)]
    edges = [[name, place] for name, place in zip(operator.inputs, operator.sources, strict=True)]
    attributes = {k: list(v) if isinstance(v, tuple) else v for k, v in operator.attributes.items()}
    return [
        *(operator.name, operator.kind, edges, extents, list(operator.parameters)),
        *(attributes, operator.depth, int(operator.differentiable)),
    ]


def _operator(row: list[Any]) -> Operator:
    name, kind, edges, extents, parameters, attributes, depth, differentiable = row
    output, *operands = (Extent(tuple(dims), axis) for dims, axis in extents)
    return Operator(
        name=name,
        kind=kind,
        inputs=tuple(producer for producer, _ in edges),
        sources=tuple(place for _, place in edges),
        operands=tuple(operands),
        output=output,
        parameters=tuple(parameters),
        attributes={k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()},
        depth=depth,
        differentiable=bool(differentiable),
    )


def _contradictions(graph: OperatorGraph) -> Iterator[Problem]:
    seen: set[str] = set()
    for operator in graph.operators:
        if operator.name in seen:
            yield Problem(f"operators.{operator.name}", "the same name twice", "each name once")
        for producer in operator.inputs:
            if producer not in seen:
                yield Problem(f"operators.{operator.name}.inputs", repr(producer), "an operator listed before this one")
        for parameter in operator.parameters:
            if parameter not in graph.parameters:
                yield Problem(f"operators.{operator.name}.parameters", repr(parameter), "a parameter of the graph")
        for place in operator.sources:
            if not 0 <= place < len(operator.operands):
                yield Problem(f"operators.{operator.name}.sources", str(place), "the place of an operand")
        seen.add(operator.name)
