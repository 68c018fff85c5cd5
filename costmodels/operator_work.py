"""What an operator of torch.fx asks of a device: bytes to move, matrix products, or nothing but the host's time."""

import re
from ast import literal_eval
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

Size = tuple[int, ...]

FREE = ("placeholder", "get_attr", "output")
VIEWS = (
    *("view", "permute", "transpose", "unsqueeze", "squeeze", "expand", "expand_as", "split", "chunk", "t", "getitem"),
    *("flatten", "unflatten", "unbind", "detach", "contiguous", "reshape"),
)
CASTS = ("to", "type", "type_as", "float", "long", "int", "half", "cuda")
CREATES = ("full", "ones", "zeros", "empty", "arange", "tensor", "full_like", "ones_like", "zeros_like", "cumsum")
PRODUCTS = ("linear", "addmm", "matmul", "bmm", "baddbmm", "conv1d")
NORMS = ("layernorm", "layer_norm", "softmax", "log_softmax", "mean", "sum", "var", "argmax")
REORDERS = ("transpose", "permute", "t", "expand")
TABLES = ("wte", "word_embeddings", "embed_tokens", "shared")
"""Last names of modules that look up a token's row; their table has as many rows as the last layer has outputs."""
GRADIENT_PASSES = {"add": 0.0, "sub": 0.0, "pow": 6.0, "tanh": 3.0, "gelu": 3.0, "relu": 3.0, "where": 2.0}
"""Operands that the gradient of an elementwise operator reads and writes, as multiples of its output. A sum passes the gradient
on; others: a product with a number 2, of two tensors 6."""
WIDTH_B = 4.0
"""Bytes of an element: records are of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """`kind` is the function's or method's own name, of a module what its name and shapes say. `copies`: its operand lies in
    memory in another order, so that a change of shape moves it. `table_rows` of an embedding, where known."""

    kind: str
    inputs: tuple[Size, ...]
    output: Size
    copies: bool = False
    table_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an operator asks of a device: `group` names the parameters of its class; `products` are batch, m, n, k. `back`: it has
    a backward."""

    group: str
    forward_B: float = 0.0
    backward_B: float = 0.0
    products: tuple[int, int, int, int] | None = None
    back: bool = False


def read_operators(records: Iterable[Mapping[str, Any]]) -> tuple[Operator, ...]:
    """Operators of one pass from its rows in order: op, target, name, input_shapes, output_shape, inputs (the texts of a CSV)."""
    rows = list(records)
    shapes = [(_sizes(r["input_shapes"]), _size(r["output_shape"])) for r in rows]
    kinds = [kind_of(str(r["op"]), str(r["target"]), *shape) for r, shape in zip(rows, shapes, strict=True)]
    vocab = max((o[-1] for k, (_, o) in zip(kinds, shapes, strict=True) if k == "linear" and o), default=0)
    reordered: dict[str, bool] = {}
    found = []
    for row, kind, (inputs, output) in zip(rows, kinds, shapes, strict=True):
        known = any(reordered.get(name, False) for name in re.findall(r"(\w+):", str(row["inputs"])))
        reordered[str(row["name"])] = kind in REORDERS or (
            known and kind in VIEWS and kind not in ("contiguous", "reshape")
        )
        table = vocab if kind == "embedding" and str(row["target"]).rsplit(".", 1)[-1] in TABLES else 0
        found.append(Operator(kind=kind, inputs=inputs, output=output, copies=known, table_rows=table))
    return tuple(found)


@lru_cache(maxsize=4096)
def _sizes(text: object) -> tuple[Size, ...]:
    """Sizes of all operands, those of lists of tensors one after the other."""
    return tuple(_flat(literal_eval(str(text))))


def _flat(value: Any) -> Iterator[Size]:
    if isinstance(value, Sequence) and value and all(isinstance(n, int) for n in value):
        yield tuple(value)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _flat(part)


def _size(text: object) -> Size:
    """Of the first result; of a number (1,)."""
    return next(iter(_sizes(text)), (1,))


@lru_cache(maxsize=4096)
def kind_of(op: str, target: str, inputs: tuple[Size, ...], output: Size) -> str:
    """The name of an operator from torch.fx's `op` and `target`: "addmm" from "<built-in method addmm of type object at 0x1>"."""
    if op in FREE:
        return "free"
    if op == "call_module":
        return _module(target.rsplit(".", 1)[-1].lower(), inputs, output)
    found = re.match(r"<(?:built-in )?(?:function|method|class) '?(?:[\w.]*\.)?(\w+)", target)
    name = (found[1] if found else target).strip("_")
    return "layernorm" if name == "layer_norm" else name


def _module(name: str, inputs: tuple[Size, ...], output: Size) -> str:
    """Modules are recorded by their path only: its last word, and whether a dimension came or changed."""
    first = inputs[0] if inputs else ()
    if "drop" in name:
        return "dropout"
    if "norm" in name or name.startswith("ln"):
        return "layernorm"
    if "act" in name or name in ("relu", "gelu", "tanh", "silu"):
        return "gelu"
    return "embedding" if len(output) == len(first) + 1 else "linear"


def work(operator: Operator, *, training: bool) -> Work:
    """Bytes and products of one operator, forward and backward.

    The backward of a product are two of its size. Elementwise operators read the gradient and what they saved, and write a
    gradient for each operand.
    """
    kind, output = operator.kind, operator.output
    tensors = [prod(s) for s in operator.inputs if s != (1,)]
    if kind == "free":
        return Work(group="free")
    if output == (1,) or kind in CASTS:
        return Work(group="view" if kind in ("split", "chunk", "unbind") else "host")
    if kind in PRODUCTS and tensors:
        return _product(operator, training)
    if kind == "dropout" and not training:
        return Work(group="view")
    if kind in ("contiguous", "reshape", "clone") and (operator.copies or kind == "clone"):
        return Work(group="copy", forward_B=2 * WIDTH_B * prod(output))
    if kind in VIEWS:
        return Work(group="view" if tensors else "host")
    if kind in CREATES:
        return Work(group="create", forward_B=WIDTH_B * prod(output))
    return _streamed(operator, float(prod(output)), tensors, training)


def _streamed(operator: Operator, n: float, tensors: Sequence[int], training: bool) -> Work:
    """Operators that move their operands through memory once; `n` elements come out."""
    kind, moved = operator.kind, sum(tensors) + n
    if kind == "embedding":
        # the gradient of the whole table is zeroed, then the rows of the tokens are added to it
        table = operator.table_rows * operator.output[-1]
        return _moving("embedding", 2 * n, 3 * n + table, training)
    if kind in NORMS:
        return _moving("softmax" if "softmax" in kind else "norm", moved, 3 * n, training)
    if kind == "dropout":
        return _moving("dropout", 2.25 * n, 2.25 * n, training)
    passes = GRADIENT_PASSES.get(kind, 2.0 if len(tensors) < 2 else 6.0)
    group = "broadcast" if len(tensors) > 1 and min(tensors) < n else "pointwise"
    return _moving(group, moved, passes * n, training and bool(tensors))


def _moving(group: str, forward: float, backward: float, back: bool) -> Work:
    return Work(group=group, forward_B=WIDTH_B * forward, backward_B=WIDTH_B * backward, back=back)


def _product(operator: Operator, back: bool) -> Work:
    """batch, m, n, k of C[m, n] = A[m, k] B[k, n]; leading dimensions of a linear layer are rows. Products of two activations form
    a group by whether the inner dimension is the short one."""
    tensors = [s for s in operator.inputs if s != (1,)]
    output = operator.output
    if operator.kind in ("linear", "addmm", "conv1d"):
        left = tensors[1] if operator.kind == "addmm" and len(tensors) > 2 else tensors[0]
        return Work(group="linear", products=(1, prod(output[:-1]), output[-1], left[-1]), back=back)
    m, n, k = output[-2] if len(output) > 1 else 1, output[-1], tensors[-2 if len(tensors) > 1 else 0][-1]
    return Work(group="outer" if k <= n else "inner", products=(prod(output[:-2]), m, n, k), back=back)
