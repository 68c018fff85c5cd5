"""Kernels: a name, a dtype and a shape. FLOPs and bytes of each are pure functions of these.

| name | shape |
|---|---|
| gemm | batch (1), m, n, k: C[m, n] = A[m, k] B[k, n] |
| attention, attention_backward | batch, q_len, kv_len, heads, kv_heads, head_dim, causal (0 or 1) |
| rmsnorm, layernorm, silu_mul, gelu, rope, add, softmax | rows, cols; all but add and softmax also with _backward |
| embedding (+ _backward) | rows, cols, vocab |
| cross_entropy (+ _backward) | rows, vocab |
| adamw, sgd | params; dtype is that of the weights, moments are float32 |
| cast, copy, zero | elements |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

WIDTH_B = {
    "float32": 4.0,
    "tf32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "nvfp4": 0.5625,
    "int8": 1.0,
    "int4": 0.5,
}
"""Bytes of one element."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """`count` launches of one kernel, one after the other. `shape` holds sizes by name, sorted: (("k", 8), ("m", 8), ("n", 8))."""

    name: str
    dtype: str
    shape: tuple[tuple[str, int], ...]
    count: int = 1


def kernel(name: str, dtype: str, *, count: int = 1, **shape: int) -> Kernel:
    """`kernel("gemm", "bfloat16", m=512, n=512, k=64)`."""
    return Kernel(name, dtype, tuple(sorted(shape.items())), count)


# reads and writes of rows x cols elements, FLOPs for each element
_ELEMENTWISE = {
    "rmsnorm": (2, 4),
    "rmsnorm_backward": (3, 8),
    "layernorm": (2, 7),
    "layernorm_backward": (3, 12),
    "silu_mul": (3, 6),
    "silu_mul_backward": (5, 10),
    "gelu": (2, 8),
    "gelu_backward": (3, 12),
    "rope": (2, 3),
    "rope_backward": (2, 3),
    "add": (3, 1),
    "softmax": (2, 5),
}


@lru_cache(maxsize=65536)
def flops(kernel: Kernel) -> float:
    """Floating point operations of all launches; a multiply-add is two."""
    s = dict(kernel.shape)
    return kernel.count * _flops(kernel.name, s)


def _flops(name: str, s: dict[str, int]) -> float:
    if name == "gemm":
        return 2.0 * s.get("batch", 1) * s["m"] * s["n"] * s["k"]
    if name in ("attention", "attention_backward"):
        # two products forward, five backward (Dao 2023, section 3.1); causal attention sees half of a square
        products = 2 if name == "attention" else 5
        return products * 2.0 * s["batch"] * s["heads"] * s["head_dim"] * attended_pairs(s)
    if name in _ELEMENTWISE:
        return float(_ELEMENTWISE[name][1]) * s["rows"] * s["cols"]
    if name.startswith("cross_entropy"):
        return 5.0 * s["rows"] * s["vocab"]
    return {"adamw": 12.0, "sgd": 2.0}.get(name, 0.0) * s.get("params", 0)


def attended_pairs(s: dict[str, int]) -> float:
    """Pairs of a query and a key that it sees, in one sequence and head; with `causal` queries are the last of the keys."""
    q, kv = s["q_len"], s["kv_len"]
    if not s.get("causal", 0):
        return float(q) * kv
    seen = min(q, kv)
    return float(seen) * (kv - seen) + seen * (seen + 1) / 2.0


@lru_cache(maxsize=65536)
def nbytes(kernel: Kernel) -> float:
    """Bytes to and from memory of all launches if every operand moves once."""
    return kernel.count * float(moved_B(kernel.name, kernel.dtype, dict(kernel.shape)))


def moved_B(name: str, dtype: str, s: Mapping[str, Any]) -> Any:
    """Bytes of one launch; sizes are numbers or arrays that broadcast, the result is of their kind."""
    width = WIDTH_B[dtype]
    if name == "gemm":
        return width * s.get("batch", 1) * (s["m"] * s["k"] + s["k"] * s["n"] + s["m"] * s["n"])
    if name in ("attention", "attention_backward"):
        q = s["batch"] * s["q_len"] * s["heads"] * s["head_dim"]
        kv = s["batch"] * s["kv_len"] * s["kv_heads"] * s["head_dim"]
        return width * ((2 * q + 2 * kv) if name == "attention" else (4 * q + 4 * kv))
    if name in _ELEMENTWISE:
        return width * _ELEMENTWISE[name][0] * s["rows"] * s["cols"]
    if name == "embedding":
        return (2 * width * s["cols"] + 8) * s["rows"]
    if name == "embedding_backward":  # the gradient of the whole table is written, the rows of the tokens added
        return width * s["cols"] * (3 * s["rows"] + s["vocab"])
    if name.startswith("cross_entropy"):
        return 2 * width * s["rows"] * s["vocab"]
    if name == "adamw":  # reads weight, gradient and two moments, writes weight and moments
        return s["params"] * (3 * width + 16.0)
    if name == "sgd":
        return s["params"] * 3 * width
    return {"cast": 1.5, "copy": 2.0, "zero": 1.0}[name] * width * s["elements"]


NAMES = frozenset(
    (
        *_ELEMENTWISE,
        *("gemm", "attention", "attention_backward", "embedding", "embedding_backward"),
        *("cross_entropy", "cross_entropy_backward", "adamw", "sgd", "cast", "copy", "zero"),
    )
)
