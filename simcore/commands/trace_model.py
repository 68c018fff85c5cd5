"""`windtunnel trace-model`: a torch module as a graph of operators."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simcore.commands.options import AsJson
from simcore.commands.output import note, show, show_json

if TYPE_CHECKING:
    from costmodels.operator_graph import OperatorGraph


def trace_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name like resnet50, a Hugging Face config.json, or package.module:function that returns a module and inputs.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where the graph goes; by default NAME.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the operators of a model's training step as a graph that plans and simulations read."""
    from importlib import import_module

    from simcore.errors import InputError, Problem
    from simcore.reporting.views import nested_view

    try:
        trace = import_module("real.precision.tracing").trace_named
    except ModuleNotFoundError as missing:
        problem = Problem(
            "trace-model", f"no {missing.name}", "an installation with it", "pip install 'windtunnel[real]'"
        )
        raise InputError(f"tracing needs {missing.name}", [problem]) from missing
    graph: OperatorGraph = trace(model)
    path = out or Path(f"{graph.name}.json")
    graph.save(path)
    if as_json:
        show_json(_summary(graph))
    else:
        show(nested_view(graph.name, _summary(graph)))
    note(f"wrote {path}")


def _summary(graph: "OperatorGraph") -> dict[str, Any]:
    from collections import Counter

    from costmodels.precision import ADJUSTABLE

    kinds = Counter(operator.kind for operator in graph)
    return {
        "source": graph.source,
        "sample": graph.sample,
        "operators": len(graph.operators),
        "longest_way": graph.depth,
        "parameters": graph.elements,
        "adjustable": {kind: kinds[kind] for kind in sorted(ADJUSTABLE) if kinds[kind]},
    }
