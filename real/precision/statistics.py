"""Statistics of adjustable operators at float32, for the indicator: `python -m real.precision.statistics MODEL -o FILE`."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from costmodels.operator_graph import OperatorGraph
from costmodels.precision import ADJUSTABLE, allowed
from costmodels.precision_error import weight_curvature, weight_shift
from real.precision.binding import embedding_of, product_of
from real.precision.models import Inputs, Model, build
from real.precision.tracing import trace
from real.precision.watching import Call, Watching
from simcore.errors import InputError, Problem, WindtunnelError
from simcore.qsync.statistics import OperatorStatistics, Statistics

ITERATIONS = 10
WITH_WEIGHTS = ("int8", "fp8", "float16", "bfloat16", "tf32", "float32")

Row = dict[str, float]
Step = Callable[[], None]


def collect(
    model: Model,
    graph: OperatorGraph,
    batches: Iterable[tuple[Inputs, Any]],
    iterations: int = ITERATIONS,
    *,
    source: str,
    after: Step | None = None,
) -> Statistics:
    """Means over `iterations` training steps in float32 of each adjustable operator's norms and largest magnitudes.

    `batches` are inputs and targets of one size. `after` is called behind each backward pass, for an optimizer that goes on
    training; without it weights stay and only batches (and dropout) differ. `source` says what was run. The model stays in the
    mode, train or not, that it is in, and its gradients are gone. Raises `InputError` for fewer than one batch.
    """
    gathered: dict[str, list[Row]] = {o.name: [] for o in graph if o.kind in ADJUSTABLE}
    taken = 0
    watching = Watching(model.module, lambda call: _watched(call, gathered))
    try:
        for inputs, targets in islice(batches, iterations):
            model.module.zero_grad(set_to_none=True)
            with watching:
                loss = model.objective(inputs, targets)
            loss.backward()
            _add_weight_gradients(model.module, graph, gathered)
            taken += 1
            if after is not None:
                after()
    finally:
        watching.remove()
    if not taken:
        raise InputError("no statistics", [Problem("batches", "none", "at least one batch")])
    model.module.zero_grad(set_to_none=True)
    samples = _samples(graph, gathered)
    found = {name: _mean(rows, *_of_weight(model.module, graph, name)) for name, rows in gathered.items()}
    return Statistics(model=graph.name, source=source, samples=samples, measured=True, operators=found)


def _watched(call: Call, gathered: Mapping[str, list[Row]]) -> Any:
    result = call()
    if call.kind not in ADJUSTABLE:
        return result
    row = _operands(call)
    row["D_vv"] = result.numel()
    gathered[call.name].append(row)
    if result.requires_grad:
        result.register_hook(lambda g: row.update(_norms("g", g)))
    return result


def _operands(call: Call) -> Row:
    if call.kind == "embedding":
        index, table, _ = embedding_of(call)
        n = index.numel()
        return {"D_v": n, "norm_v": n**0.5, "amax_v": 1.0, "D_w": table.numel(), **_norms("w", table)}
    _, v, w, _ = product_of(call)
    return {"D_v": v.numel(), "D_w": w.numel(), **_norms("v", v), **_norms("w", w)}


def _norms(name: str, x: Tensor) -> Row:
    x = x.detach().float()
    return {f"norm_{name}": float(x.norm()), f"amax_{name}": float(x.abs().max())}


def _add_weight_gradients(module: nn.Module, graph: OperatorGraph, gathered: Mapping[str, list[Row]]) -> None:
    parameters = dict(module.named_parameters())
    for name, rows in gathered.items():
        own = graph[name].parameters
        gradient = parameters[own[0]].grad if own else None
        if gradient is not None:
            rows[-1]["norm_dw"] = float(gradient.norm())


def _samples(graph: OperatorGraph, gathered: Mapping[str, list[Row]]) -> int:
    """The batch: how often the elements of one sample go into those of an operator's result."""
    grown = next(o for o in graph if o.name in gathered and o.output.axis is not None)
    return int(gathered[grown.name][0]["D_vv"]) // grown.output.elements(1)


def _of_weight(module: nn.Module, graph: OperatorGraph, name: str) -> tuple[float | None, dict[str, float]]:
    """What the indicators of weights alone read; of products without parameters nothing."""
    operator = graph[name]
    if not operator.parameters:
        return None, {}
    weight = dict(module.named_parameters())[operator.parameters[0]].detach().numpy(force=True).astype(np.float64)
    narrow = [p for p in allowed(operator, WITH_WEIGHTS) if p != "float32"]
    return weight_curvature(weight), {p: weight_shift(weight, p) for p in narrow}


def _mean(rows: list[Row], curvature: float | None, shift: Mapping[str, float]) -> OperatorStatistics:
    """Without a gradient (nothing below is trained) its norm is 0."""
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    counts = {key: int(mean.pop(key)) for key in ("D_v", "D_w", "D_vv")}
    norms = {"norm_g": 0.0, "amax_g": 0.0, **mean}
    return OperatorStatistics(**counts, **norms, curvature=curvature, shift=shift)  # type: ignore[arg-type]


def of_model(spec: str, *, batch: int, iterations: int = ITERATIONS, seed: int = 0) -> Statistics:
    """Of a model as `windtunnel trace-model` takes it, initialised from `seed`, on its own random examples."""
    torch.manual_seed(seed)
    graph = trace(build(spec))
    torch.manual_seed(seed)
    model = build(spec)
    model.module.train()
    source = (
        f"{model.source}; weights as initialised with torch seed {seed}, float32, train mode; {iterations} iterations of "
        f"{batch} random samples ({model.sample}), no optimizer step; torch {torch.__version__.partition('+')[0]} on a CPU"
    )
    return collect(model, graph, (model.example(batch) for _ in range(iterations)), iterations, source=source)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument(
        "model", help="a name, a config.json, or package.module:function, as for `windtunnel trace-model`"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        found = of_model(given.model, batch=given.batch, iterations=given.iterations, seed=given.seed)
    except WindtunnelError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    found.save(given.out)
    print(f"{given.out}: {len(found.operators)} operators of {found.model}, {found.samples} samples")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
