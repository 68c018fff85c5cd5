"""What a pass of a dense transformer asks of the devices that serve it, in seconds by kind of work, and what stays in memory."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from costmodels import attention, catalog, gemm
from costmodels.collectives import Shape, best
from costmodels.prediction import Floats
from costmodels.specs import DeviceSpec, LinkSpec
from costmodels.transformer import TransformerShape, total_elements

KINDS = ("linear", "attention", "stream", "network")
"""Parts of a step on the device."""
STREAM_SHARE = 0.85
"""Of memory bandwidth in long streams; an engine's factor for streams and attention is relative to it."""
GPUS_PER_NODE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """`gemm` are formats of which the faster one counts (narrow weights help small batches, narrow arithmetic large ones);
    `weight_B` and `kv_B` are bytes of an element at rest, `activation` the dtype between layers."""

    gemm: tuple[str, ...]
    activation: str
    weight_B: float
    kv_B: float


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(gemm=("float32",), activation="float32", weight_B=4.0, kv_B=4.0),
    "tf32": Precision(gemm=("tf32",), activation="float32", weight_B=4.0, kv_B=4.0),
    "fp16": Precision(gemm=("float16",), activation="float16", weight_B=2.0, kv_B=2.0),
    "bf16": Precision(gemm=("bfloat16",), activation="bfloat16", weight_B=2.0, kv_B=2.0),
    "fp8": Precision(gemm=("fp8",), activation="bfloat16", weight_B=1.0, kv_B=2.0),
    "w8a8": Precision(gemm=("int8",), activation="float16", weight_B=1.0, kv_B=1.0),
    "w8a16": Precision(gemm=("int8_wo",), activation="float16", weight_B=1.0, kv_B=2.0),
    "w4a16": Precision(gemm=("int4_wo",), activation="float16", weight_B=0.52, kv_B=2.0),
    "w4a8kv4": Precision(gemm=("int8", "int4_wo"), activation="float16", weight_B=0.52, kv_B=0.53),
    "w4a4": Precision(gemm=("int8", "int4_wo"), activation="float16", weight_B=0.52, kv_B=0.53),
    "nf4": Precision(gemm=("int4_wo",), activation="bfloat16", weight_B=0.53, kv_B=2.0),
}
ALIASES = {
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "int8": "w8a8",
    "sq": "w8a8",
    "int4": "w4a16",
    "awq": "w4a16",
    "gptq": "w4a16",
    "int4_wo": "w4a16",
    "int8_wo": "w8a16",
    "w4a8": "w4a8kv4",
}


def precision_of(name: str) -> Precision | None:
    """By the names that engines use: "W4A8KV4", "bnb.nf4-dq", "INT8-v2"; None for one that nobody has described."""
    wanted = name.strip().lower()
    wanted = ALIASES.get(wanted, wanted)
    if wanted in PRECISIONS:
        return PRECISIONS[wanted]
    return next((p for key, p in (*PRECISIONS.items(), ("int8", PRECISIONS["w8a8"])) if key in wanted), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Devices that serve one copy of a model: `tp` ranks share each layer, `pp` stages share the layers. `network` joins hosts
    and is None where there is one host."""

    device: DeviceSpec
    tp: int = 1
    pp: int = 1
    network: LinkSpec | None = None


Parts = dict[str, Floats]
"""Seconds by kind of part; arrays of one shape."""


def parts(
    shape: TransformerShape,
    place: Place,
    precision: Precision,
    batch: Floats,
    q_len: Floats,
    kv_len: Floats,
    *,
    fused: bool = True,
    causal: bool = True,
    tokens: Floats | None = None,
) -> Parts:
    """Seconds of each kind of work in one pass through all layers, one stage after the other, and the head.

    `tokens` are the rows of linear layers where they are fewer than batch x q_len because padding is left out.
    """
    device, tp = place.device, place.tp
    rows = batch * q_len if tokens is None else tokens
    h, f = shape.hidden, shape.ffn
    q, kv = shape.q_cols / tp, max(shape.kv_cols / tp, shape.head_dim)
    up = (2 if shape.gated else 1) * f / tp
    linear = np.zeros(np.shape(rows))
    for n, k in ((q + 2 * kv, h), (h, q), (up, h), (h, f / tp)):
        linear = linear + shape.layers * _product(device, precision, rows, n, k)
    if shape.vocab > 1:
        linear = linear + _half_product(device, precision, batch, shape.vocab / tp, h)
    width = 4.0 if precision.activation == "float32" else 2.0
    moved = width * rows * (10.0 * h + 2 * (q + 2 * kv) + (up + 2 * f / tp))
    return {
        "linear": linear,
        "attention": shape.layers * _attention(shape, place, precision, batch, q_len, kv_len, fused, causal),
        "stream": shape.layers * moved / (device.memory_B_per_s * STREAM_SHARE),
        "network": _network(shape, place, width * rows * h),
    }


def _product(device: DeviceSpec, precision: Precision, rows: Floats, n: float, k: float) -> Floats:
    found = [gemm.predict(device, dtype, 1.0, rows, n, k).seconds for dtype in precision.gemm]
    return np.asarray(np.min(found, axis=0), dtype=np.float64)


def _half_product(device: DeviceSpec, precision: Precision, rows: Floats, n: float, k: float) -> Floats:
    """The head keeps the activations' dtype."""
    return np.asarray(gemm.predict(device, precision.activation, 1.0, rows, n, k).seconds, dtype=np.float64)


def _attention(
    shape: TransformerShape,
    place: Place,
    precision: Precision,
    batch: Floats,
    q_len: Floats,
    kv_len: Floats,
    fused: bool,
    causal: bool,
) -> Floats:
    """One layer: fused kernels as `attention.predict` has them; else a prompt's scores are written to memory and read again.

    All engines decode with fused kernels, which stream keys and values.
    """
    device = place.device
    heads, kv_heads, dim = shape.heads / place.tp, max(shape.kv_heads / place.tp, 1.0), shape.head_dim
    kept = "fp8" if precision.kv_B <= 1.0 else None
    fast = attention.predict(
        device, precision.activation, batch, q_len, kv_len, heads, kv_heads, dim, float(causal), kv_dtype=kept
    ).seconds
    if kept:  # kernels for four bits were not measured: they read half of what those for eight read
        fast = fast * np.where(q_len <= 1, precision.kv_B, 1.0)
    if fused:
        return np.asarray(fast, dtype=np.float64)
    width = 4.0 if precision.activation == "float32" else 2.0
    pairs = batch * heads * q_len * kv_len
    products = gemm.predict(device, precision.activation, batch * heads, q_len, kv_len, dim).seconds
    products = products + gemm.predict(device, precision.activation, batch * heads, q_len, dim, kv_len).seconds
    prompt = products + device.launch_s + 4.0 * width * pairs / (device.memory_B_per_s * STREAM_SHARE)
    return np.asarray(np.where(q_len <= 1, fast, prompt), dtype=np.float64)


def _network(shape: TransformerShape, place: Place, moved_B: Floats) -> Floats:
    """Two all-reduces for each layer among tensor ranks, and a send between stages."""
    out = np.zeros(np.shape(moved_B))
    if place.tp > 1:
        where = communicator(place)
        unique, at = np.unique(moved_B, return_inverse=True)
        once = np.array([float(best("all_reduce", float(B), "float16", where).seconds) for B in unique])
        out = out + 2 * shape.layers * once[at].reshape(np.shape(moved_B))
    if place.pp > 1:
        link = place.network or _peer(place.device)
        out = out + (place.pp - 1) * (link.start_s + link.latency_s + moved_B / (link.B_per_s * link.efficiency))
    return out


def communicator(place: Place) -> Shape:
    """Tensor ranks in hosts of eight, one port of the network for each."""
    near = _peer(place.device)
    nodes = -(-place.tp // GPUS_PER_NODE)
    far = place.network or catalog.link("infiniband_hdr")
    return Shape(
        size=place.tp,
        nodes=nodes,
        rails=max(place.tp // nodes, 1),
        node_B_per_s=near.B_per_s * near.efficiency,
        net_B_per_s=far.B_per_s * far.efficiency if nodes > 1 else np.inf,
        node_s=near.latency_s,
        net_s=far.latency_s if nodes > 1 else 0.0,
        in_switch=False,  # engines of these measurements reduce in rings or by kernels of their own
        start_s=near.start_s,
        ramp_s=near.ramp_s,
    )


def _peer(device: DeviceSpec) -> LinkSpec:
    return catalog.link(device.peer_link or device.host_link or "pcie4")


def weights_B(shape: TransformerShape, precision: Precision) -> float:
    """Bytes of all weights; the embedding and the head keep the activations' dtype."""
    ends = shape.vocab * shape.hidden * (1 if shape.tied_embeddings else 2)
    width = 4.0 if precision.activation == "float32" else 2.0
    return (total_elements(shape) - ends) * precision.weight_B + ends * width


def cache_B(shape: TransformerShape, precision: Precision, tokens: ArrayLike) -> Floats:
    """Bytes of keys and values of `tokens` tokens in all layers (of all devices together)."""
    return np.asarray(tokens, dtype=np.float64) * 2.0 * shape.layers * shape.kv_cols * precision.kv_B


def largest_batch(
    shape: TransformerShape, place: Place, precision: Precision, tokens: float, share: float = 0.9
) -> int:
    """Most sequences of `tokens` tokens whose keys and values fit beside the weights into `share` of the devices' memory."""
    devices = place.tp * place.pp
    left = devices * place.device.memory_B * share - weights_B(shape, precision)
    return max(int(left / float(cache_B(shape, precision, tokens))), 0)
