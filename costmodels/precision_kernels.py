"""What an operator of a graph runs: kernels of its forward and its backward pass in a precision, of casts, and the host's time.

Convolutions and products have a backward product for each operand that needs a gradient. Everything else moves its operands through
memory once; views move nothing, but a change of shape of what a transposition left in another order copies it.
"""

from collections.abc import Iterable
from math import prod
from typing import Literal

from costmodels import operators
from costmodels.kernels import Kernel, kernel
from costmodels.operator_graph import Operator, OperatorGraph
from costmodels.precision import BITS, HANDS_ON, Cast

Casts = Literal["fitted", "released", "released_by_channel"]
"""Who says how long casts take: what was fitted to the device, or the lines of `costmodels.casts`."""

NARROW = frozenset(("int8", "fp8"))
VIEWS = frozenset(
    (
        *(
            "view",
            "transpose",
            "permute",
            "t",
            "unsqueeze",
            "squeeze",
            "expand",
            "expand_as",
            "split",
            "chunk",
            "unbind",
        ),
        *("getitem", "select", "slice", "narrow", "flatten", "unflatten", "detach", "identity", "swapaxes", "movedim"),
    )
)
RESHAPES = frozenset(("reshape", "contiguous", "flatten"))
REORDERS = frozenset(("transpose", "permute", "t", "swapaxes", "movedim"))

BY_ROWS = {
    "layer_norm": "layernorm",
    "rms_norm": "rmsnorm",
    "gelu": "gelu",
    "silu": "gelu",
    "tanh": "tanh",
    "sigmoid": "tanh",
    "softmax": "softmax",
    "log_softmax": "softmax",
    "relu": "relu",
    "dropout": "dropout",
}
"""Kernels of operators with one operand, by rows of the last dimension; silu and sigmoid move what gelu and tanh do."""

FREE_BACKWARD = frozenset(("add", "sub"))
"""The gradient of the result is that of both operands."""

GROUPS = {
    **dict.fromkeys(("conv2d", "linear"), "linear"),
    **dict.fromkeys(("matmul", "attention"), "inner"),
    **dict.fromkeys(("layer_norm", "batch_norm", "group_norm", "rms_norm", "mean", "sum", "var"), "norm"),
    **dict.fromkeys(("softmax", "log_softmax", "cross_entropy"), "softmax"),
    **dict.fromkeys(("embedding", "dropout"), ""),
}
"""Groups of `costmodels.operators` by which the host's time is known; "" stands for the kind itself, others are pointwise."""


def stored(precision: str) -> str:
    """The dtype in memory: tf32 is a way to multiply float32."""
    return "float32" if precision == "tf32" else precision


def reordered(graph: OperatorGraph) -> frozenset[str]:
    """Operators whose result lies in memory in another order than its dimensions say: transpositions, and views of them."""
    found: set[str] = set()
    for operator in graph:
        views = operator.kind in VIEWS and operator.kind not in RESHAPES
        if operator.kind in REORDERS or (views and any(name in found for name in operator.inputs)):
            found.add(operator.name)
    return frozenset(found)


def copies(operator: Operator, out_of_order: Iterable[str]) -> bool:
    """Whether a change of shape has to move its operand."""
    return operator.kind == "clone" or (
        operator.kind in RESHAPES and any(name in out_of_order for name in operator.inputs)
    )


def is_view(operator: Operator, out_of_order: Iterable[str]) -> bool:
    """Whether the result is the operand's memory."""
    return operator.kind in VIEWS | RESHAPES and not copies(operator, out_of_order)


def forward(
    graph: OperatorGraph, operator: Operator, batch: int, precision: str, out_of_order: Iterable[str] = ()
) -> tuple[Kernel, ...]:
    """Kernels of the forward pass of `batch` samples, `reordered` operators given; () for what the device does not notice."""
    n, dtype = operator.output.elements(batch), stored(precision)
    if operator.kind == "conv2d":
        return (
            kernel("conv2d", precision, **_conv_sizes(graph, operator, batch)),
            *_bias(graph, operator, n, precision),
        )
    if operator.kind in ("linear", "matmul"):
        each, m, rest, k = _product(graph, operator, batch)
        return (_gemm(precision, each, m, rest, k),)
    if operator.kind == "embedding":
        rows, cols = graph.weight(operator)
        return (kernel("embedding", dtype, rows=n // cols, cols=cols, vocab=rows),)
    if operator.kind == "attention":
        return (kernel("attention", dtype, **_attention_sizes(operator, batch)),)
    if is_view(operator, out_of_order) or not n:
        return ()
    if copies(operator, out_of_order):
        return (kernel("copy", dtype, elements=n),)
    if operator.kind == "batch_norm":
        return (kernel("batch_norm", dtype, **_channels(operator, batch)),)
    if operator.kind in BY_ROWS:
        return (kernel(BY_ROWS[operator.kind], dtype, **_rows(operator, batch)),)
    if operator.kind in ("add", "sub", "mul") and _equal_operands(operator, batch) == 2:
        return (kernel("mul" if operator.kind == "mul" else "add", dtype, **_rows(operator, batch)),)
    read = sum(e.elements(batch) for e in operator.operands)
    if operator.kind in ("max_pool2d", "avg_pool2d"):
        return (kernel(operator.kind, dtype, inputs=read, outputs=n),)
    return (kernel("stream", dtype, reads=read, writes=n),)


def backward(
    graph: OperatorGraph, operator: Operator, batch: int, precision: str, output: str, out_of_order: Iterable[str] = ()
) -> tuple[Kernel, ...]:
    """Kernels of the backward pass in `precision`; gradients of a result that several operators read are added up in `output`."""
    if not operator.differentiable:
        return ()
    own = _own_backward(graph, operator, batch, precision, out_of_order)
    readers = [graph[name] for name in graph.consumers[operator.name]]
    extra = sum(r.inputs.count(operator.name) for r in readers if r.differentiable) - 1
    if extra < 1:
        return own
    return (kernel("add", stored(output), count=extra, **_rows(operator, batch)), *own)


def _own_backward(
    graph: OperatorGraph, operator: Operator, batch: int, precision: str, out_of_order: Iterable[str]
) -> tuple[Kernel, ...]:
    n, dtype = operator.output.elements(batch), stored(precision)
    trained = trained_operands(graph, operator)
    if operator.kind == "conv2d":
        sizes = _conv_sizes(graph, operator, batch) | {"data": int(bool(trained))}
        return (kernel("conv2d_backward", precision, **sizes), *_bias(graph, operator, n, precision))
    if operator.kind in ("linear", "matmul"):
        return _product_backward(graph, operator, batch, precision, trained)
    if operator.kind == "embedding":
        rows, cols = graph.weight(operator)
        return (kernel("embedding_backward", "float32", rows=n // cols, cols=cols, vocab=rows),)
    if operator.kind == "attention":
        return (kernel("attention_backward", dtype, **_attention_sizes(operator, batch)),)
    if is_view(operator, out_of_order) or not (trained or operator.parameters):
        return ()
    if copies(operator, out_of_order):
        return (kernel("copy", dtype, elements=n),)
    if operator.kind == "batch_norm":
        return (kernel("batch_norm_backward", dtype, **_channels(operator, batch)),)
    if operator.kind in BY_ROWS:
        return (kernel(BY_ROWS[operator.kind] + "_backward", dtype, **_rows(operator, batch)),)
    sizes_of = [operator.operands[place].elements(batch) for place in trained]
    if operator.kind in FREE_BACKWARD:  # summed over what was broadcast
        return tuple(kernel("stream", dtype, reads=n, writes=size) for size in sizes_of if size < n)
    if operator.kind in ("max_pool2d", "avg_pool2d"):
        return (kernel(f"{operator.kind}_backward", dtype, inputs=sum(sizes_of), outputs=n),)
    if operator.kind == "mul" and _equal_operands(operator, batch) == 2 and len(trained) == 2:
        return (kernel("mul_backward", dtype, **_rows(operator, batch)),)
    saved = 0 if operator.kind in ("cat", "mean", "sum", "pad") else sum(sizes_of)
    return (kernel("stream", dtype, reads=n + saved, writes=sum(sizes_of)),)


def trained_operands(graph: OperatorGraph, operator: Operator) -> tuple[int, ...]:
    """Places of the operands that a gradient goes back to."""
    edges = zip(operator.inputs, operator.sources, strict=True)
    return tuple(place for name, place in edges if graph[name].differentiable)


def cast(change: Cast, casts: Casts = "fitted") -> tuple[Kernel, ...]:
    """Kernels of one cast; to fewer bits than 16 the largest magnitude is looked for first, which gives the scale.

    As QSync released them, casts are one kernel; scales by channel are those of weights.
    """
    if casts != "fitted":
        by_channel = int(casts == "released_by_channel" and change.what.endswith("weight"))
        sizes = {"elements": change.elements, "bits": BITS[change.target], "by_channel": by_channel}
        return (kernel("released_cast", change.source, **sizes),)
    one = kernel("cast", change.source, elements=change.elements, bits=BITS[change.target])
    if change.target in NARROW:
        return (kernel("amax", change.source, elements=change.elements), one)
    return (one,)


def launch(thousandths: float) -> Kernel:
    """The host's work for an operator, in thousandths of the device's `host_s`."""
    return kernel("launch", "float32", thousandths=round(thousandths))


def cast_launches(change: Cast) -> float:
    """The host's work for one cast, in thousandths: an elementwise operator for each kernel."""
    return 1000.0 * operators.floors()["pointwise"] * len(cast(change))


def launches(operator: Operator, way: str, kernels: int, out_of_order: Iterable[str] = ()) -> float:
    """The host's work for an operator without its casts, in thousandths; `kernels` is how many it runs.

    What was measured is one operator at a time, so this is what a program without CUDA graphs pays.
    """
    floors = operators.floors()
    if is_view(operator, out_of_order):
        return 1000.0 * floors["view"] if way == "forward" else 0.0
    if not kernels:
        return 0.0
    group = GROUPS.get(operator.kind, "pointwise") or operator.kind
    if copies(operator, out_of_order):
        group = "copy"
    suffix = "_back" if way == "backward" and f"{group}_back" in floors else ""
    return 1000.0 * floors[group + suffix]


def _gemm(precision: str, batch: int, m: int, n: int, k: int) -> Kernel:
    shape = {"batch": batch} if batch > 1 else {}
    if precision in HANDS_ON and precision != "tf32":
        shape["narrowed"] = 1
    return kernel("gemm", precision, m=m, n=n, k=k, **shape)


def _product(graph: OperatorGraph, operator: Operator, batch: int) -> tuple[int, int, int, int]:
    """batch, m, n, k of C[m, n] = A[m, k] B[k, n]; leading dimensions of a linear layer's operand are rows."""
    *leading, n = operator.output.at(batch)
    if operator.kind == "linear":
        return 1, prod(leading), n, prod(graph.weight(operator)) // n
    m, k = (leading[-1] if leading else 1), operator.operands[0].at(batch)[-1]
    return prod(leading[:-1]), m, n, k


def _product_backward(
    graph: OperatorGraph, operator: Operator, batch: int, precision: str, trained: tuple[int, ...]
) -> tuple[Kernel, ...]:
    each, m, n, k = _product(graph, operator, batch)
    data, other = _gemm(precision, each, m, k, n), _gemm(precision, each, k, n, m)
    if operator.kind == "linear":
        bias = (kernel("stream", stored(precision), reads=m * n, writes=n),) if len(operator.parameters) > 1 else ()
        return (*((data,) if trained else ()), other, *bias)
    return (*((data,) if 0 in trained else ()), *((other,) if 1 in trained or operator.parameters else ()))


def _conv_sizes(graph: OperatorGraph, operator: Operator, batch: int) -> dict[str, int]:
    _, channels, height, width = operator.operands[0].at(batch)
    _, filters, out_h, out_w = operator.output.at(batch)
    groups = operator.attributes.get("groups", 1)
    kernel_h, kernel_w = graph.weight(operator)[2:]
    assert isinstance(groups, int)
    return {
        "batch": batch,
        "channels": channels,
        "height": height,
        "width": width,
        "groups": groups,
        "filters": filters,
        "kernel_h": kernel_h,
        "kernel_w": kernel_w,
        "out_h": out_h,
        "out_w": out_w,
    }


def _bias(graph: OperatorGraph, operator: Operator, n: int, precision: str) -> tuple[Kernel, ...]:
    """A convolution's bias is a kernel by itself, forward and backward; it reads the whole result."""
    if len(operator.parameters) < 2:
        return ()
    dtype = "float32" if precision in NARROW else stored(precision)
    size = prod(graph.parameters[operator.parameters[1]])
    return (kernel("stream", dtype, reads=n, writes=size),)


def _attention_sizes(operator: Operator, batch: int) -> dict[str, int]:
    """Fused attention of queries (..., heads, queries, head_dim) with keys of as many dimensions."""
    query, key = operator.operands[0].at(batch), operator.operands[1].at(batch)
    heads, kv_heads = (prod(size[:-2]) // batch for size in (query, key))
    return {
        "batch": batch,
        "q_len": query[-2],
        "kv_len": key[-2],
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": query[-1],
        "causal": int(bool(operator.attributes.get("causal", 0))),
    }


def _rows(operator: Operator, batch: int) -> dict[str, int]:
    size = operator.output.at(batch) or (1,)
    return {"rows": prod(size[:-1]), "cols": size[-1]}


def _channels(operator: Operator, batch: int) -> dict[str, int]:
    size = operator.output.at(batch)
    return {"rows": size[1], "cols": prod(size) // size[1]}


def _equal_operands(operator: Operator, batch: int) -> int:
    """How many operands have every number of the result."""
    return sum(e.elements(batch) == operator.output.elements(batch) for e in operator.operands)
