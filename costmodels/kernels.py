"""Kernels: a name, a dtype and a shape. FLOPs and bytes of each are pure functions of these.

| name | shape |
|---|---|
| gemm | batch (1), m, n, k: C[m, n] = A[m, k] B[k, n] |
| attention, attention_backward | batch, q_len, kv_len, heads, kv_heads, head_dim, causal (0 or 1) |
| rmsnorm, layernorm, silu_mul, gelu, rope, add, softmax | rows, cols; all but add and softmax also with _backward |
| embedding (+ _backward) | rows, cols, vocab |
| cross_entropy (+ _backward) | rows, vocab |
| linear_logprob (+ _backward) | rows, cols (width of a hidden state), vocab; logits are never in memory as a whole |
| gae | rows (sequences), cols (steps); also a mask of a byte for each step |
| grouped_advantage | rows (prompts), cols (answers to each) |
| adamw, sgd, sgd_momentum | params; dtype is that of the weights, moments are float32 |
| cast, copy, zero, amax | elements; a cast also `bits` of what it writes (half of what it reads where nothing is said) |
| conv2d (+ _backward) | batch, channels, height, width, filters, kernel_h, kernel_w, out_h, out_w, groups; backward: data, \
0 where the input needs no gradient |
| batch_norm (+ _backward) | rows (channels), cols (numbers of each) |
| relu, tanh, dropout, mul (+ _backward) | rows, cols; a dropout also writes, later reads, a mask of a byte for each number |
| max_pool2d, avg_pool2d (+ _backward) | inputs, outputs: numbers of both |
| stream | reads, writes: numbers of both, of whatever else moves its operands through memory once |
| launch | thousandths: of the time in which the host starts a kernel; the host's work, none of the device |
| prefill/ENGINE, decode/ENGINE, host_copy, engine_start | see `costmodels.generation` |
| checkpoint/PHASE | see `costmodels.checkpoint`; the host's work, none of the device |

A gemm with `narrowed` has operands that a cast narrowed before (a conv2d always has), and writes what `precision.HANDS_ON` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from costmodels import generation_work

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
    "mul": (3, 1),
    "mul_backward": (5, 2),
    "softmax": (2, 5),
    "softmax_backward": (3, 4),
    "relu": (2, 1),
    "relu_backward": (3, 1),
    "tanh": (2, 8),
    "tanh_backward": (3, 3),
    "batch_norm": (3, 8),  # read once for the statistics and once more to write the result
    "batch_norm_backward": (5, 12),  # gradient and input likewise
    "grouped_advantage": (2, 6),  # sum, centre, square, sum, divide; a row is in registers meanwhile
}
_POOLS = ("max_pool2d", "max_pool2d_backward", "avg_pool2d", "avg_pool2d_backward")
CONVOLUTIONS = ("conv2d", "conv2d_backward")
LOGPROBS = ("linear_logprob", "linear_logprob_backward")
GAE_FLOPS = 6  # of a step: 3 for its error, 2 for the sum that it decays into, 1 for the return
INDEX_B = 8  # bytes of a position that a pool, an embedding or a target keeps


@lru_cache(maxsize=65536)
def flops(kernel: Kernel) -> float:
    """Floating point operations of all launches; a multiply-add is two."""
    s = dict(kernel.shape)
    return kernel.count * float(_flops(kernel.name, s))


def _flops(name: str, s: dict[str, int]) -> Any:
    if generation_work.is_generation(name):
        return generation_work.flops(name, s)
    if name == "gemm":
        return 2.0 * s.get("batch", 1) * s["m"] * s["n"] * s["k"]
    if name in ("attention", "attention_backward"):
        # two products forward, five backward (Dao 2023, section 3.1); causal attention sees half of a square
        products = 2 if name == "attention" else 5
        return products * 2.0 * s["batch"] * s["heads"] * s["head_dim"] * attended_pairs(s)
    if name in CONVOLUTIONS:
        products = 1 if name == "conv2d" else 1 + s["data"]
        return products * 2.0 * conv_outputs(s) * conv_depth(s)
    if name in LOGPROBS:  # backward multiplies anew what forward did not keep, then with either operand
        return (2.0 if name == "linear_logprob" else 6.0) * s["rows"] * s["cols"] * s["vocab"]
    if name == "gae":
        return float(GAE_FLOPS) * s["rows"] * s["cols"]
    if name in _ELEMENTWISE:
        return float(_ELEMENTWISE[name][1]) * s["rows"] * s["cols"]
    if name.startswith("cross_entropy"):
        return 5.0 * s["rows"] * s["vocab"]
    return {"adamw": 12.0, "sgd": 2.0, "sgd_momentum": 4.0}.get(name, 0.0) * s.get("params", 0)


def conv_outputs(s: Mapping[str, Any]) -> Any:
    """Numbers that a convolution writes."""
    return s["batch"] * s["filters"] * s["out_h"] * s["out_w"]


def conv_depth(s: Mapping[str, Any]) -> Any:
    """Multiplications for each of them: channels of a group in the window of the kernel."""
    return s["channels"] / s["groups"] * s["kernel_h"] * s["kernel_w"]


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
    if generation_work.is_generation(name):
        return generation_work.moved_B(name, width, s)
    if name == "gemm":
        return width * s.get("batch", 1) * (s["m"] * s["k"] + s["k"] * s["n"] + s["m"] * s["n"])
    if name in ("attention", "attention_backward"):
        q = s["batch"] * s["q_len"] * s["heads"] * s["head_dim"]
        kv = s["batch"] * s["kv_len"] * s["kv_heads"] * s["head_dim"]
        return width * ((2 * q + 2 * kv) if name == "attention" else (4 * q + 4 * kv))
    if name in LOGPROBS:
        return _logprob_B(name, width, s)
    if name == "gae":  # reads rewards, values and the mask, writes advantages and returns
        return (4 * width + 1) * s["rows"] * s["cols"]
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
    if name in ("sgd", "sgd_momentum"):  # reads weight and gradient, writes the weight; reads and writes the momentum
        return s["params"] * (3 if name == "sgd" else 5) * width
    if name in CONVOLUTIONS:
        return width * _conv_elements(name, s)
    if name in ("dropout", "dropout_backward"):
        return (2 * width + 1) * s["rows"] * s["cols"]
    if name in _POOLS:
        index_B = INDEX_B if name.startswith("max") else 0.0
        return width * s["inputs"] + (width + index_B) * s["outputs"]
    if name == "stream":
        return width * (s["reads"] + s["writes"])
    if name == "launch":
        return 0.0
    if name.startswith("checkpoint/"):
        return s.get("elements", 0.0)
    if name == "released_cast" or (name == "cast" and "bits" in s):
        return (width + s["bits"] / 8) * s["elements"]
    return {"cast": 1.5, "copy": 2.0, "zero": 1.0, "amax": 1.0}[name] * width * s["elements"]


def _logprob_B(name: str, width: float, s: Mapping[str, Any]) -> Any:
    """Operands, targets and four numbers of each row; backward each operand for two of three products, its gradient, and the
    gradient of the logits, which is made slice by slice and read by both products."""
    operands = s["rows"] * s["cols"] + s["vocab"] * s["cols"]
    of_rows = (INDEX_B + 4 * WIDTH_B["float32"]) * s["rows"]
    if name == "linear_logprob":
        return width * operands + of_rows
    return 3 * width * (operands + s["rows"] * s["vocab"]) + of_rows


def _conv_elements(name: str, s: Mapping[str, Any]) -> Any:
    """Operands and result; backward once with the weight's gradient as result, and with `data` once with the input's."""
    inputs = s["batch"] * s["channels"] * s["height"] * s["width"]
    weights, outputs = s["filters"] * conv_depth(s), conv_outputs(s)
    each = inputs + weights + outputs
    return each if name == "conv2d" else each * (1 + s["data"])


NAMES = frozenset(
    (
        *_ELEMENTWISE,
        *("gemm", "attention", "attention_backward", "embedding", "embedding_backward"),
        *("cross_entropy", "cross_entropy_backward", "adamw", "sgd", "sgd_momentum", "cast", "copy", "zero", "amax"),
        *(*CONVOLUTIONS, *_POOLS, *LOGPROBS, "gae", "dropout", "dropout_backward", "stream"),
    )
)
"""Kernels of a device."""
