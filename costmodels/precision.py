"""In which precision operators compute, what they hand on, and where tensors are cast: rules that plans and the real backend share.

An operator is *adjustable* (a plan chooses its precision), *fixed* (it computes in float32 whatever comes), or *inferring* (it
takes the precision of what it reads if all of that agrees, otherwise float32): QSync's precision-dependent, -independent and
inferring operators. Parameters, their gradients and the sums of these over replicas stay float32.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from costmodels.operator_graph import Operator, OperatorGraph
from costmodels.specs import DeviceSpec

Way = Literal["forward", "backward"]

PRECISIONS = ("int8", "fp8", "float16", "bfloat16", "tf32", "float32")
"""From the narrowest to the widest."""

BITS = {"int8": 8, "fp8": 8, "float16": 16, "bfloat16": 16, "tf32": 19, "float32": 32}

ADJUSTABLE = frozenset(("conv2d", "linear", "embedding", "matmul"))
FIXED = frozenset(
    (
        *("layer_norm", "batch_norm", "group_norm", "rms_norm", "gelu", "silu", "tanh", "softmax", "log_softmax"),
        *("add", "sub", "mul", "div", "pow", "exp", "sqrt", "rsqrt", "mean", "sum", "var", "cross_entropy"),
    )
)

HANDS_ON = {"int8": "float32", "fp8": "bfloat16", "tf32": "float32"}
"""What comes out of an operator that hands on another precision than it computes in; int8 products are scaled to float32."""

GRADIENTS = {"int8": ("float16", "bfloat16", "float32"), "fp8": ("bfloat16", "float16", "float32")}
"""In which precision the backward pass of narrow operators computes: the first that the device has."""

WITHOUT_NARROW = frozenset(("embedding",))
"""Adjustable kinds without kernels of 8 bits."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Precision of an operator: what it computes in forward and backward, and of the tensor that it hands on."""

    computes: str
    backward: str
    output: str


@dataclass(frozen=True, slots=True)
class Cast:
    """A change of precision of one tensor, done by the operator that reads or makes it.

    `what` is "operand 0" or "weight" forward; backward "saved operand 0", "saved weight" (narrow ones that were kept are widened),
    "output gradient" as it arrives, "operand 0 gradient" and "weight gradient" as they leave.
    """

    operator: str
    way: Way
    what: str
    source: str
    target: str
    elements: int


def of_device(device: DeviceSpec) -> tuple[str, ...]:
    """Precisions that a device has arithmetic for, narrow to wide."""
    return tuple(p for p in PRECISIONS if p in device.flop_per_s)


def widened(device: DeviceSpec) -> frozenset[str]:
    """16-bit precisions whose operands a device multiplies as float32: of a CPU what `windtunnel calibrate` found, else those in
    which it is not faster than in float32."""
    if device.kind != "cpu":
        return frozenset()
    rates = device.flop_per_s
    slow = [p for p in ("float16", "bfloat16") if rates.get(p, 0.0) <= rates.get("float32", 0.0)]
    found = device.measured.get("widened", slow)
    assert isinstance(found, list)
    return frozenset(found)


def allowed(operator: Operator, has: Collection[str]) -> tuple[str, ...]:
    """What a plan may choose for an operator on a device that has `has`, narrow to wide; () where there is nothing to choose."""
    if operator.kind not in ADJUSTABLE:
        return ()
    narrowest = 16 if operator.kind in WITHOUT_NARROW else 8
    return tuple(p for p in PRECISIONS if p in has and BITS[p] >= narrowest)


def flows(graph: OperatorGraph, chosen: Mapping[str, str], has: Collection[str]) -> dict[str, Flow]:
    """The precision of every operator; adjustable ones that `chosen` does not name compute in float32."""
    found: dict[str, Flow] = {}
    for operator in graph:
        found[operator.name] = _flow(operator, chosen, [found[name].output for name in operator.inputs], has)
    return found


def _flow(operator: Operator, chosen: Mapping[str, str], arriving: list[str], has: Collection[str]) -> Flow:
    if operator.kind in ADJUSTABLE:
        return flow_of(operator, chosen.get(operator.name, "float32"), has)
    same = operator.kind not in FIXED and len(set(arriving)) == 1
    return flow_of(operator, arriving[0] if same else "float32", has)


def flow_of(operator: Operator, computes: str, has: Collection[str]) -> Flow:
    """The precisions of an operator that computes in `computes`."""
    if operator.kind not in ADJUSTABLE:
        return Flow(computes, computes, computes)
    if operator.kind == "embedding":
        return Flow(computes, "float32", computes)
    backward = next((p for p in GRADIENTS.get(computes, ()) if p in has), computes)
    return Flow(computes, backward, HANDS_ON.get(computes, computes))


def casts(graph: OperatorGraph, flow: Mapping[str, Flow], batch: int) -> Iterator[Cast]:
    """Every cast of a training step with `batch` samples, operator by operator.

    Forward, an operator casts the operands and the weight that come in another precision than it computes in, and keeps them as it
    used them. Backward, it casts the gradient of its output from the output's precision, what it kept to that of its backward
    pass, and gradients of operands and weight to theirs. An embedding casts the rows that it looked up, and adds their gradients to
    its table in float32. Inputs of the model come in float32.
    """
    for operator in graph:
        arriving = [flow[name].output for name in operator.inputs]
        yield from casts_of(graph, operator, flow[operator.name], arriving, batch)


def casts_of(
    graph: OperatorGraph, operator: Operator, mine: Flow, arriving: Sequence[str], batch: int
) -> Iterator[Cast]:
    """Casts of one operator whose `inputs` arrive in these precisions."""
    adjustable = operator.kind in ADJUSTABLE
    made = dict(zip(operator.sources, zip(operator.inputs, arriving, strict=True), strict=True))
    read = [
        (
            f"operand {place}",
            made[place][1] if place in made else "float32",
            extent.elements(batch),
            place in made and graph[made[place][0]].differentiable,
        )
        for place, extent in enumerate(operator.operands)
        if place in made or (adjustable and operator.kind != "embedding")
    ]
    n_output = operator.output.elements(batch)
    if operator.parameters and adjustable:
        n_weight = n_output if operator.kind == "embedding" else prod(graph.weight(operator))
        read.append(("weight", "float32", n_weight, True))
    for what, source, n, _ in read:
        yield from _cast(operator, "forward", what, source, mine.computes, n)
    if not operator.differentiable:
        return
    yield from _cast(operator, "backward", "output gradient", mine.output, mine.backward, n_output)
    for what, source, n, trained in read:
        if adjustable and operator.kind != "embedding":
            yield from _cast(operator, "backward", f"saved {what}", mine.computes, mine.backward, n)
        if trained:
            yield from _cast(operator, "backward", f"{what} gradient", mine.backward, source, n)


def _cast(operator: Operator, way: Way, what: str, source: str, target: str, elements: int) -> Iterator[Cast]:
    """tf32 is float32 in memory: nothing to cast."""
    stored = [p if p != "tf32" else "float32" for p in (source, target)]
    if stored[0] != stored[1]:
        yield Cast(operator.name, way, what, stored[0], stored[1], elements)
