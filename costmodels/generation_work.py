"""FLOPs and bytes of what generates, and of the calls around it, by a kernel's name and shape; see `costmodels.generation`."""

from collections.abc import Mapping
from typing import Any

DECODE, PREFILL, HOST_COPY, ENGINE_START = "decode", "prefill", "host_copy", "engine_start"
CALL, SPLIT, SPLIT_BACKWARD = "controller_call", "split_layers", "split_layers_backward"
LENGTH = {DECODE: "kv_len", PREFILL: "q_len"}
"""The size by which work grows beside the batch."""


def is_generation(name: str) -> bool:
    """Whether a kernel is one of generation, or of the calls around it: the name before the engine's says so."""
    return name.split("/")[0] in (PREFILL, DECODE, HOST_COPY, ENGINE_START, CALL, SPLIT, SPLIT_BACKWARD)


def flops(name: str, s: Mapping[str, Any]) -> Any:
    """Multiply-adds of one launch: two for each weight and token, and attention over what each token sees."""
    kind = name.split("/")[0]
    if kind not in LENGTH:
        return 0.0
    tokens = s["batch"] * (s["q_len"] if kind == PREFILL else 1)
    seen = s["q_len"] / 2.0 if kind == PREFILL else s["kv_len"]
    attended = 4.0 * tokens * s["layers"] * s["heads"] * s["head_dim"] * seen
    head = 2.0 * s["batch"] * s["hidden"] * s["vocab"]
    return (2.0 * tokens * s["layers"] * _layer_weights(s) + attended + head) / (s["tp"] * s["pp"])


def moved_B(name: str, width: float, s: Mapping[str, Any]) -> Any:
    """Bytes of one launch on one device: weights once, keys and values of everything that is seen or written."""
    kind = name.split("/")[0]
    if kind not in LENGTH:
        return float(s["elements"])
    weights = s["layers"] * _layer_weights(s) + s["hidden"] * s["vocab"]
    cache = 2.0 * s["batch"] * s[LENGTH[kind]] * s["layers"] * s["kv_heads"] * s["head_dim"]
    return width * (weights + cache) / (s["tp"] * s["pp"])


def _layer_weights(s: Mapping[str, Any]) -> Any:
    attention = 2 * s["hidden"] * s["head_dim"] * (s["heads"] + s["kv_heads"])
    return attention + (2 + s["gated"]) * s["hidden"] * s["ffn"]
