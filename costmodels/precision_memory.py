"""What training keeps of an operator graph: states in float32, and for the backward pass the tensors that autograd saves.

Products and convolutions keep their operands as they used them, norms, gelu and products of numbers what they read, relu and
softmax what they wrote, dropout a mask, a maximum its places. A tensor that several operators keep as it came is there once.
"""

from math import prod

from costmodels.kernels import INDEX_B, WIDTH_B
from costmodels.operator_graph import Operator, OperatorGraph
from costmodels.precision import ADJUSTABLE, Flow

OVERHEAD_B = 1e9
"""Assumption: the context of a GPU, workspaces of its libraries and buffers of communicators in data parallel training."""

OPTIMIZER_B = {"sgd": 0.0, "sgd_momentum": 4.0, "adamw": 8.0}
"""Bytes of an optimizer's state for each parameter."""

KEEPS_OPERANDS = frozenset(
    (
        *(
            "conv2d",
            "linear",
            "matmul",
            "attention",
            "batch_norm",
            "layer_norm",
            "group_norm",
            "rms_norm",
            "gelu",
            "silu",
        ),
        *("mul", "div", "pow", "max_pool2d", "avg_pool2d", "cross_entropy", "var"),
    )
)
KEEPS_RESULT = frozenset(("relu", "softmax", "log_softmax", "tanh", "sigmoid", "exp", "sqrt", "rsqrt", "attention"))


def states(graph: OperatorGraph, optimizer: str) -> dict[str, float]:
    """Resident bytes by kind; `optimizer` is a key of `OPTIMIZER_B`."""
    n = graph.elements
    return {"weights": 4.0 * n, "gradients": 4.0 * n, "optimizer": OPTIMIZER_B[optimizer] * n}


def keeps_operands(operator: Operator) -> bool:
    """Whether the backward pass needs what the operator read."""
    return operator.differentiable and operator.kind in KEEPS_OPERANDS


def keeps_result(operator: Operator) -> bool:
    """Whether the backward pass needs what the operator wrote."""
    return operator.differentiable and operator.kind in KEEPS_RESULT


def own_B(graph: OperatorGraph, operator: Operator, batch: int, computes: str) -> float:
    """Bytes that an operator keeps by itself: a narrow copy of its weight, operands that no operator made, masks and places."""
    if not operator.differentiable:
        return 0.0
    n, width = operator.output.elements(batch), WIDTH_B[computes]
    kept = 0.0
    if operator.kind in ADJUSTABLE - {"embedding"} and operator.parameters and width < WIDTH_B["float32"]:
        kept += width * prod(graph.weight(operator))
    given = [e for place, e in enumerate(operator.operands) if place not in operator.sources]
    if operator.kind == "embedding":
        kept += INDEX_B * n / graph.weight(operator)[1]
    elif operator.kind in KEEPS_OPERANDS:
        kept += width * sum(e.elements(batch) for e in given)
    if operator.kind == "dropout":
        kept += n
    return kept + (INDEX_B * n if operator.kind == "max_pool2d" else 0.0)


def working_B(
    graph: OperatorGraph, operator: Operator, batch: int, flow: Flow, *, cpu: bool, widens: bool = False
) -> float:
    """What the backward step of an operator holds for a moment, beside what was kept and the gradient of its result.

    Gradients of its operands, and of a product or convolution what is cast for it: the gradient of its result and its operands
    where they were kept in another precision. A CPU without 16-bit arithmetic widens narrow operands once more, to multiply in
    float32 (`widens`), and convolutions of a CPU (`cpu`) rearrange the operand and its gradient.
    """
    if not operator.differentiable or passes_on(operator):
        return 0.0
    made = sum(operator.operands[place].elements(batch) for place in operator.sources)
    if operator.kind not in ADJUSTABLE or operator.kind == "embedding":
        return WIDTH_B["float32"] * made
    read, written = float(sum(e.elements(batch) for e in operator.operands)), operator.output.elements(batch)
    if operator.parameters:
        weight = prod(graph.weight(operator))
        read, made = read + weight, made + weight
    width, wide = WIDTH_B[flow.backward], WIDTH_B["float32"]
    narrow = width < wide
    multiplied = wide if narrow and widens else width
    found = multiplied * made
    if WIDTH_B[flow.output] != width:
        found += width * written
    if WIDTH_B[flow.computes] != width:
        found += width * read
    if narrow:
        found += wide * (read + written if widens else made)
    if operator.kind == "conv2d" and cpu:
        found += 2 * multiplied * operator.operands[0].elements(batch)
    return found


def passes_on(operator: Operator) -> bool:
    """Whether the gradient of the result is that of the operands, in the same memory."""
    return operator.kind in ("add", "sub")
