"""A state as a tree: tensors apart, everything else as plain JSON. Nothing in it can be executed when it is read.

JSON has neither tuples, bytes, numbers that are not finite nor keys that are not text; such a thing becomes an object with one key
that begins with `$`. A tensor is `{"$tensor": name}`, an array of numpy `{"$array": name}`.
"""

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

from simcore.errors import InputError, Problem

DEEPEST = 64
SKIPPED = object()
"""What a `tensor` function returns for a tensor that is not wanted: its place in a dict is left out."""
Leaf = Callable[[str, Any], str | None]
"""Given the name and a value, the name under which it is kept as a tensor, None if it is none."""


def to_plain(value: Any, name: str, leaf: Leaf, depth: int = 0) -> Any:
    """`value` as JSON; names of tensors are paths joined by "/". Raises InputError for what cannot be kept."""
    if depth > DEEPEST:
        raise InputError("the state is nested too deeply", [Problem(name, "more", f"{DEEPEST} levels")])
    kept = leaf(name, value)
    if kept is not None:
        return {"$array" if type(value).__name__ == "ndarray" else "$tensor": kept}
    if value is None or isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, int):
        return {"$int": hex(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return _mapping(value, name, leaf, depth)
    if isinstance(value, list | tuple):
        items = [to_plain(v, f"{name}/{i}", leaf, depth + 1) for i, v in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of numpy
        return to_plain(value.item(), name, leaf, depth)
    advice = "Keep it as numbers, text, lists, dicts, tensors or arrays; it is never pickled."
    raise InputError(
        "the state holds what cannot be saved",
        [Problem(name, type(value).__name__, "plain values and tensors", advice)],
    )


def _mapping(value: Mapping[Any, Any], name: str, leaf: Leaf, depth: int) -> dict[str, Any]:
    if all(isinstance(k, str) and not k.startswith("$") for k in value):
        return {k: to_plain(v, f"{name}/{k}", leaf, depth + 1) for k, v in value.items()}
    pairs = []
    for key, item in value.items():
        pairs.append([to_plain(key, name, lambda _n, _v: None), to_plain(item, f"{name}/{key}", leaf, depth + 1)])
    return {"$map": pairs}


def from_plain(plain: Any, tensor: Callable[[str], Any]) -> Any:
    """The tree again; `tensor` gives the tensor of a name. Raises InputError for what `to_plain` does not make."""
    if isinstance(plain, list):
        return [from_plain(v, tensor) for v in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1 or not next(iter(plain)).startswith("$"):
        read = {k: from_plain(v, tensor) for k, v in plain.items()}
        return {k: v for k, v in read.items() if v is not SKIPPED}
    kind, value = next(iter(plain.items()))
    try:
        return _special(kind, value, tensor)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "a value cannot be read", [Problem(kind, repr(value)[:100], "what this version writes")]
        ) from error


def _special(kind: str, value: Any, tensor: Callable[[str], Any]) -> Any:
    if kind == "$tensor":
        return tensor(value)
    if kind == "$array":
        found = tensor(value)
        return found.numpy() if hasattr(found, "numpy") else found
    if kind == "$tuple":
        return tuple(from_plain(v, tensor) for v in value)
    if kind == "$map":
        return {from_plain(k, tensor): from_plain(v, tensor) for k, v in value}
    if kind == "$int":
        return int(value, 16)
    if kind == "$float":
        return float(value)
    if kind == "$bytes":
        return base64.b64decode(value, validate=True)
    raise ValueError(kind)


def merge_plain(first: Any, second: Any, name: str) -> Any:
    """Two ranks' parts of one tree: objects are united, all else has to agree. Raises InputError naming what does not."""
    if isinstance(first, dict) and isinstance(second, dict):
        return {
            k: merge_plain(first[k], second[k], f"{name}/{k}")
            if k in first and k in second
            else first.get(k, second.get(k))
            for k in {**first, **second}
        }
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [merge_plain(a, b, f"{name}/{i}") for i, (a, b) in enumerate(zip(first, second, strict=True))]
    if type(first) is type(second) and first == second:
        return first
    advice = "What differs between ranks belongs in `extra` or `dataloader`, which are kept for each rank."
    problem = Problem(
        name, f"{str(first)[:80]!r} and {str(second)[:80]!r}", "the same on every rank that has it", advice
    )
    raise InputError("ranks disagree about a value", [problem])
