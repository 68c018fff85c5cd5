"""A plan's precisions bound to an unchanged torch module.

    bound = bind(model.module, graph, chosen, has)
    with bound:
        loss = model.objective(inputs, targets)
    loss.backward()

Each operator of the forward pass runs as `costmodels.precision` says: adjustable ones in their planned precision, fixed ones in
float32, all others in that of what they read; and exactly the casts of `costmodels.precision.casts` are done. Parameters, their
gradients and the module's state stay as they are, in float32.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from costmodels.operator_graph import Operator, OperatorGraph
from costmodels.precision import ADJUSTABLE, PRECISIONS, Cast, Flow, Way, allowed, flows
from real.precision.functions import Numerics, Report, arithmetic, change, compute, look_up
from real.precision.observing import Observer, watch_backward
from real.precision.products import Product
from real.precision.rounding import ROUNDINGS, SCALINGS, STORED, Rounding, Scaling
from real.precision.watching import SUMS, Call, Watching, tensors
from simcore.errors import CannotRun, PlanError, Problem


class Bound:
    """Enter it around a forward pass and its loss, each time anew; `close` takes the hooks off the module."""

    def __init__(
        self,
        module: nn.Module,
        graph: OperatorGraph,
        flow: Mapping[str, Flow],
        numerics: Numerics,
        observer: Observer | None,
        on_cast: Callable[[Cast], None] | None,
    ) -> None:
        self.graph, self.flow, self.numerics = graph, flow, numerics
        self.observer, self.on_cast = observer, on_cast
        self.watching = Watching(module, self._perform if observer is None else self._observed)

    def __enter__(self) -> "Bound":
        self.watching.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.watching.__exit__(kind, error, trace)

    def close(self) -> None:
        """Leave the module as it was."""
        self.watching.remove()

    def arithmetic(self, device: torch.device) -> dict[str, str]:
        """By operator that a plan chooses for: which kernels compute it on a device."""
        emulate = self.numerics.emulate
        adjustable = [o for o in self.graph if o.kind in ADJUSTABLE]
        return {o.name: arithmetic(o.kind, self.flow[o.name].computes, device, emulate=emulate) for o in adjustable}

    def _observed(self, call: Call) -> Any:
        observer = self.observer
        assert observer is not None
        below = [t.grad_fn for t in tensors((call.args, call.kwargs))]
        observer.begin(call.name, "forward")
        try:
            result = self._perform(call)
        finally:
            observer.end(call.name, "forward")
        made = call.args[0] if result is None else result
        watch_backward(call.name, list(tensors(made)), below, observer)
        return result

    def _perform(self, call: Call) -> Any:
        if call.name not in self.flow:
            if any(t.is_floating_point() for t in tensors((call.args, call.kwargs))):
                given = f"{call.name!r} ({call.kind})"
                raise CannotRun(
                    f"the model is not the graph {self.graph.name!r}",
                    [Problem("model", given, "operators of the graph", "Trace the model again, as it is now.")],
                )
            return call()
        report = self._reporting(call.name) if self.on_cast else None
        if call.kind in ADJUSTABLE:
            return self._adjustable(call, report)
        return self._other(call, report)

    def _adjustable(self, call: Call, report: Report | None) -> Tensor:
        flow = self.flow[call.name]
        if call.kind == "embedding":
            index, table, options = embedding_of(call)
            return look_up(index, table, flow, self.numerics, report, **options)
        product, v, w, bias = product_of(call)
        return compute(product, flow, self.numerics, v, w, bias, report)

    def _other(self, call: Call, report: Report | None) -> Any:
        """In the precision of its flow: operands that come in another are cast."""
        target = self.flow[call.name].computes
        wanted = STORED[target]
        places = {id(t): i for i, t in enumerate(call.operands)}

        def fitting(x: Tensor) -> Tensor:
            known = id(x) in places or isinstance(x, nn.Parameter)
            if not x.is_floating_point() or x.dtype == wanted or not known:
                return x
            name = f"operand {places[id(x)]}" if id(x) in places else "weight"
            names = (name, f"{name} gradient")
            return change(x, target, names, PLAIN, report, back=x.requires_grad)

        if all(not t.is_floating_point() or t.dtype == wanted for t in tensors((call.args, call.kwargs))):
            return call()
        _refuse_lost_change(call, wanted)
        return call.func(*_mapped(call.args, fitting), **_mapped(dict(call.kwargs), fitting))

    def _reporting(self, operator: str) -> Report:
        on_cast = self.on_cast
        assert on_cast is not None

        def report(way: Way, what: str, source: str, target: str, elements: int) -> None:
            on_cast(Cast(operator, way, what, source, target, elements))

        return report


PLAIN = Numerics()


def _refuse_lost_change(call: Call, wanted: torch.dtype) -> None:
    """A tensor changed in place cannot become another type; `x += y` is none of these, since `x` names what comes out."""
    name = call.func.__name__
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or "out" in call.kwargs
    changed = call.args[0] if call.args else None
    if in_place and isinstance(changed, Tensor) and changed.dtype != wanted:
        allowed_form = "the same without changing its operand"
        problem = Problem(call.name, f"{name} of a {changed.dtype} tensor, to be computed in {wanted}", allowed_form)
        raise CannotRun("an operator cannot change the type of its operand in place", [problem])


def bind(
    module: nn.Module,
    graph: OperatorGraph,
    chosen: Mapping[str, str],
    has: Collection[str],
    *,
    rounding: Rounding = "nearest",
    scaling: Scaling = "tensor",
    emulate: bool = False,
    generator: torch.Generator | None = None,
    observer: Observer | None = None,
    on_cast: Callable[[Cast], None] | None = None,
) -> Bound:
    """`module` with the precisions that `chosen` gives to adjustable operators of its `graph`; others compute in float32.

    `has` are the precisions of the device (`costmodels.precision.of_device`). `generator` draws what stochastic rounding needs, on
    the module's device. `observer` is told when each operator begins and ends, forward and backward; `on_cast` of each cast that
    was done. Raises `PlanError` for choices that the graph or the device does not have, `CannotRun` for a module that does not
    have the graph's parameters and for operators that no kernel here computes; each with all problems.
    """
    problems = list(_choices(graph, chosen, has, rounding, scaling, generator))
    if problems:
        raise PlanError(f"precisions that cannot be used for {graph.name!r}", problems)
    problems = list(_differences(module, graph))
    if problems:
        raise CannotRun(f"the module is not {graph.name!r}", problems)
    numerics = Numerics(rounding=rounding, scaling=scaling, emulate=emulate, generator=generator)
    return Bound(module, graph, flows(graph, chosen, has), numerics, observer, on_cast)


def _choices(
    graph: OperatorGraph,
    chosen: Mapping[str, str],
    has: Collection[str],
    rounding: str,
    scaling: str,
    generator: torch.Generator | None,
) -> Iterator[Problem]:
    for name, precision in chosen.items():
        if name not in graph.index:
            yield Problem(f"precision.{name}", "no operator of that name", f"operators of {graph.name!r}")
            continue
        fits = allowed(graph[name], has)
        if precision not in fits:
            advice = "" if fits else f"Leave it out: the precision of {graph[name].kind} is not chosen."
            yield Problem(f"precision.{name}", repr(precision), ", ".join(fits) or "nothing", advice)
    if rounding not in ROUNDINGS:
        yield Problem("rounding", repr(rounding), ", ".join(ROUNDINGS))
    if scaling not in SCALINGS:
        yield Problem("scaling", repr(scaling), ", ".join(SCALINGS))
    if rounding == "stochastic" and generator is None:
        yield Problem("generator", "None", "a torch.Generator", "Stochastic rounding draws numbers; give them a seed.")
    for precision in has:
        if precision not in PRECISIONS:
            yield Problem("has", repr(precision), ", ".join(PRECISIONS))


def _differences(module: nn.Module, graph: OperatorGraph) -> Iterator[Problem]:
    own = dict(module.named_parameters())
    for name, size in graph.parameters.items():
        if name not in own:
            yield Problem(f"parameters.{name}", "not in the module", f"a parameter of size {size}")
        elif tuple(own[name].shape) != size:
            yield Problem(f"parameters.{name}", f"size {tuple(own[name].shape)}", f"size {size}")
        elif own[name].dtype != torch.float32:
            yield Problem(f"parameters.{name}", str(own[name].dtype), "float32", "Parameters stay float32.")
    for name in own.keys() - graph.parameters.keys():
        yield Problem(f"parameters.{name}", "in the module only", "parameters of the graph", "Trace the model again.")
    for operator in graph:
        yield from _lacking(operator)


def _lacking(operator: Operator) -> Iterator[Problem]:
    """Forms of adjustable operators that `product_of` does not read."""
    if operator.kind == "matmul" and operator.attributes.get("summand"):
        yield Problem(operator.name, "a product with a summand", "a product, and an addition of its own")
    if operator.kind == "matmul" and any(len(extent.dims) < 2 for extent in operator.operands):
        yield Problem(operator.name, "a product with a vector", "matrices", "Give the vector a second dimension of 1.")


def product_of(call: Call) -> tuple[Product, Tensor, Tensor, Tensor | None]:
    """A linear, conv2d or matmul call as a product, its operands and its bias."""
    name = call.func.__name__.strip("_")
    given = dict(enumerate(call.args)) | dict(call.kwargs)

    def argument(place: int, name: str, default: Any = None) -> Any:
        return given.get(place, given.get(name, default))

    if call.kind == "conv2d":
        return _convolution(argument)
    if name == "linear":
        return Product(kind="linear"), argument(0, "input"), argument(1, "weight"), argument(2, "bias")
    bias = call.args[0] if name in SUMS else None
    v, w = call.args[1:3] if name in SUMS else call.args[:2]
    if name == "rmatmul":
        v, w = w, v
    if call.kind == "matmul":
        return Product(kind="matmul"), v, w, bias
    return Product(kind="linear", transposed=True), v, w, bias


def _convolution(argument: Callable[..., Any]) -> tuple[Product, Tensor, Tensor, Tensor | None]:
    v, w = argument(0, "input"), argument(1, "weight")
    dilation = _pair(argument(5, "dilation", 1))
    padding = argument(4, "padding", 0)
    if padding == "same":
        padding = tuple(d * (n - 1) // 2 for d, n in zip(dilation, w.shape[2:], strict=True))
    elif padding == "valid":
        padding = 0
    product = Product(
        kind="conv2d",
        stride=_pair(argument(3, "stride", 1)),
        padding=_pair(padding),
        dilation=dilation,
        groups=argument(6, "groups", 1),
    )
    return product, v, w, argument(2, "bias")


def embedding_of(call: Call) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Index, table, and further arguments of an embedding call."""
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    return given.pop("input"), given.pop("weight"), given


def _pair(value: Any) -> tuple[int, int]:
    found = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return found * 2 if len(found) == 1 else found  # type: ignore[return-value]


def _mapped(tree: Any, change_one: Callable[[Tensor], Tensor]) -> Any:
    """`tree` with its tensors replaced."""
    if isinstance(tree, Tensor):
        return change_one(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_mapped(branch, change_one) for branch in tree)
    if isinstance(tree, dict):
        return {key: _mapped(branch, change_one) for key, branch in tree.items()}
    return tree
