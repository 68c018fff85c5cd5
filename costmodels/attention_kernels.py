"""How long the kernels of attention take, from the data sheet and a few parameters: the formulas and nothing else.

- `prefill`: FlashAttention (Dao et al. 2022, Dao 2023): a block of queries goes through the keys that it may see, a product, an
  exponential for each pair and another product; blocks are spread over the multiprocessors.
- `decode`: one query. Keys and values stream through memory (or the L2 cache, where a benchmark leaves them); a sequence is split
  over multiprocessors that are idle (FlashDecoding, Dao et al. 2023). Heads that share keys are rows of one tensor-core product.
- `vector_decode`: the same without tensor cores, every query head by itself (TensorRT-LLM's masked multi-head attention).

Every argument is a number or an array; they broadcast.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.prediction import Floats

EXP_PER_CYCLE = 16.0
"""Exponentials that a multiprocessor computes in a cycle, NVIDIA's since 2016 (CUDA programming guide, throughput of native
arithmetic instructions); FlashAttention-3 (Shah et al. 2024, section 3.1) gives 3.9 Tflop/s for an H100."""

CHUNK = 128.0
"""Fewest keys that a decoding kernel gives to one block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the formulas need of a data sheet: numbers of one device or (rows,) arrays of many."""

    flop_per_s: Any  # of the dtype that is multiplied
    B_per_s: Any
    units: Any
    clock_hz: Any
    l2_B: Any
    launch_s: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of one launch; `query_B` and `cache_B` are bytes of an element of the queries and of keys and values."""

    batch: Any
    q_len: Any
    kv_len: Any
    heads: Any
    kv_heads: Any
    head_dim: Any
    query_B: Any
    cache_B: Any
    causal: Any = True
    backward: Any = False
    warm: Any = True  # keys and values are in the L2 cache if they fit, as after a run before with the same ones


Parameters = Mapping[str, Any]
Seconds = Callable[[Hardware, Shape, Parameters], Floats]


def block_rows(q_len: Any) -> Floats:
    """Queries of a block: 128, or 64 for short ones."""
    return np.where(np.asarray(q_len) > 64, 128.0, 64.0)


def keys_walked(q_len: Any, kv_len: Any, causal: Any) -> Floats:
    """Keys that all blocks of queries of a head walk through together; causal blocks stop after the key of their last query."""
    rows = block_rows(q_len)
    blocks = np.ceil(q_len / rows)
    seen = np.minimum(q_len, kv_len)
    visible = np.ceil(seen / rows)
    walked = visible * (kv_len - seen) + rows * visible * (visible + 1) / 2 - (rows * visible - seen)
    return np.asarray(np.where(causal, walked, blocks * kv_len))


def prefill(hw: Hardware, s: Shape, p: Parameters) -> Floats:
    """Blocks of queries over multiprocessors, no faster than the longest block, after operands have crossed memory."""
    rows = block_rows(s.q_len)
    products = np.where(
        s.backward, 2.5, 1.0
    )  # five products and four more operands instead of two (Dao 2023, section 3.1)
    pair_s = products * 4.0 * s.head_dim * hw.units / (hw.flop_per_s * np.minimum(p["tensor"], 1.0))
    pair_s = pair_s + p["softmax"] / (EXP_PER_CYCLE * hw.clock_hz)
    pair_s = pair_s * np.where(s.backward, p["backward"], 1.0)
    walked = keys_walked(s.q_len, s.kv_len, s.causal) + p["fill"] * np.ceil(s.q_len / rows)
    shared = s.batch * s.heads * rows * walked * pair_s / hw.units
    longest = rows * (s.kv_len + p["fill"]) * pair_s * p["longest"]
    streamed = np.where(s.backward, 2.0, 1.0) * _operands_s(hw, s, p)
    return np.asarray(hw.launch_s * p["launch"] + norm(p["uneven"] + 1.0, shared, longest) + streamed)


def _operands_s(hw: Hardware, s: Shape, p: Parameters) -> Floats:
    """Queries and results, keys and values: as often as they move, from the L2 cache as far as they fit there."""
    queries = 2.0 * s.batch * s.q_len * s.heads * s.head_dim * s.query_B
    keys = 2.0 * s.batch * s.kv_len * s.kv_heads * s.head_dim * s.cache_B
    cached = _cached(hw, p, queries + keys)
    moved = queries * p["query_passes"] + keys * p["key_passes"]
    return np.asarray(moved / hw.B_per_s * (1.0 - cached * (1.0 - 1.0 / (1.0 + p["cache"]))))


def _cached(hw: Hardware, p: Parameters, size_B: Any) -> Floats:
    """Share of so many bytes that the last run left in the L2 cache: all of what fits, none of what is far too large."""
    room = p["resident"] * hw.l2_B
    return np.asarray(np.clip((room - size_B) / (0.5 * hw.l2_B) + 0.5, 0.0, 1.0))


def decode(hw: Hardware, s: Shape, p: Parameters) -> Floats:
    """Keys and values once for all heads that share them."""
    return _decode(hw, s, p, s.batch * s.kv_heads)


def vector_decode(hw: Hardware, s: Shape, p: Parameters) -> Floats:
    """Keys and values are read once, but every query head computes with them by itself."""
    return _decode(hw, s, p, s.batch * s.heads)


def _decode(hw: Hardware, s: Shape, p: Parameters, blocks: Any) -> Floats:
    """Memory, lanes, and the chain of keys that one block walks through, whichever is slowest; `blocks` before any split."""
    keys = 2.0 * s.batch * s.kv_len * s.kv_heads * s.head_dim * s.cache_B
    cached = np.where(s.warm, _cached(hw, p, keys), 0.0)
    rate = hw.B_per_s * np.minimum(p["stream"], 1.0)
    streamed = keys / rate * (1.0 - cached * (1.0 - 1.0 / (1.0 + p["cache"])))
    elements = 2.0 * s.batch * s.kv_len * s.heads * s.head_dim * s.q_len
    computed = elements / (p["lanes"] * hw.units * hw.clock_hz)
    most = np.minimum(p["splits"], np.maximum(s.kv_len / CHUNK, 1.0))
    splits = np.clip(hw.units * p["occupancy"] / blocks, 1.0, np.maximum(most, 1.0))
    chained = s.kv_len / splits * p["token"] / hw.clock_hz
    results = 2.0 * s.batch * s.q_len * s.heads * s.head_dim * s.query_B / hw.B_per_s
    return np.asarray(hw.launch_s * p["launch"] + norm(p["uneven"] + 1.0, streamed, computed, chained) + results)


def norm(sharp: Any, *limits: Any) -> Floats:
    """Limits that overlap: near the largest, somewhat above it where they are alike."""
    high = np.maximum(np.maximum.reduce(np.broadcast_arrays(*limits)), 1e-30)
    return np.asarray(high * sum((x / high) ** sharp for x in limits) ** (1.0 / sharp))


KERNELS: Mapping[str, Seconds] = {"prefill": prefill, "decode": decode, "vector_decode": vector_decode}
