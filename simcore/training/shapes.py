"""The model behind a row of a training table: from its sizes, or from its name and its number of parameters."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from costmodels import model_config
from costmodels.errors import DataError
from costmodels.moe import Experts
from costmodels.transformer import TransformerShape, total_elements

Row = Mapping[str, Any]

GATED = (
    "llama",
    "mistral",
    "mixtral",
    "qwen",
    "deepseek",
    "kimi",
    "gpt oss",
    "gpt-oss",
    "gemma",
    "yi-",
    "phi-3",
    "internlm",
)
"""Families whose MLP has a gate, whose norm is RMSNorm and whose positions are rotary."""

PUBLIC: Mapping[str, Mapping[str, float | str]] = {
    "deepseekv2": {
        "layers": 60, "hidden": 5120, "ffn": 12288, "heads": 128, "kv_heads": 128, "vocab": 102400,
        "moe": "160 routed top-6 + 2 shared, moe_ffn 1536, first 1 layers dense, MLA",
    },
    "deepseekv3": {
        "layers": 61, "hidden": 7168, "ffn": 18432, "heads": 128, "kv_heads": 128, "vocab": 129280,
        "moe": "256 routed top-8 + 1 shared, moe_ffn 2048, first 3 layers dense, MLA",
    },
    "mixtral8x7b": {
        "layers": 32, "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "vocab": 32000,
        "moe": "8 experts top-2",
    },
    "mixtral8x22b": {
        "layers": 56, "hidden": 6144, "ffn": 16384, "heads": 48, "kv_heads": 8, "vocab": 32768,
        "moe": "8 experts top-2",
    },
    "llama4scout": {
        "layers": 48, "hidden": 5120, "ffn": 8192, "heads": 40, "kv_heads": 8, "vocab": 202048,
        "moe": "16 experts top-1 + 1 shared, moe_ffn 8192",
    },
    "tinyllama": {"layers": 22, "hidden": 2048, "ffn": 5632, "heads": 32, "kv_heads": 4, "vocab": 32000},
    "bertlarge": {"layers": 24, "hidden": 1024, "ffn": 4096, "heads": 16, "kv_heads": 16, "vocab": 30522},
}  # fmt: skip
"""Sizes from the models' public configurations, for tables that only name them."""

NOPE, ROPE, VALUE, Q_RANK, KV_RANK = 128, 64, 128, 1536, 512
"""Latent attention of DeepSeek-V2, V3 and Kimi K2: widths of a head's queries without and with positions and of its values, and
of the compressed queries and keys (DeepSeek-AI 2024)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A dense shape, the experts that stand in for most of its MLPs, and its number of latent-attention projections."""

    shape: TransformerShape
    experts: Experts | None = None


def number(row: Row, name: str) -> float | None:
    """A number of the row, None where it has none."""
    value = row.get(name)
    if value is None or isinstance(value, str):
        return None
    return None if math.isnan(float(value)) else float(value)


def text(row: Row, name: str) -> str:
    """A cell as text, lower case, empty where there is none."""
    value = row.get(name)
    return value.strip().lower() if isinstance(value, str) else ""


def read_model(row: Row) -> Model | None:
    """None where neither sizes nor name nor parameters say enough."""
    row = _completed(row)
    layers, hidden = number(row, "layers"), number(row, "hidden")
    parameters = (number(row, "params_b") or 0.0) * 1e9
    if hidden is None and parameters and not text(row, "moe"):
        hidden, layers = _typical(parameters, layers)
    if hidden is None:
        return None
    ffn = number(row, "ffn") or 4 * hidden
    heads = number(row, "heads") or _usual_heads(int(hidden))
    vocab = number(row, "vocab") or 50257
    if layers is None:
        if not parameters:
            return None
        layers = _layers(parameters, hidden, ffn, vocab, int(number(row, "pp") or 1))
    shape = _dense(row, int(layers), int(hidden), int(ffn), int(heads), int(vocab))
    return Model(shape=shape, experts=_experts(text(row, "moe"), shape, "truncated" in text(row, "model")))


def _completed(row: Row) -> Row:
    """The row with sizes of a public model of that name where it has none of its own."""
    if number(row, "hidden") is not None:
        return row
    name = re.sub(r"[^a-z0-9]", "", text(row, "model"))
    known: Mapping[str, Any] = next((sizes for key, sizes in PUBLIC.items() if key in name), {})
    if not known:
        known = _named(text(row, "model"))
    own = {k: v for k, v in row.items() if isinstance(v, str) or (v is not None and not math.isnan(float(v)))}
    return {**known, **own}


def _named(name: str) -> Mapping[str, Any]:
    folded = re.sub(r"[^a-z0-9]", "", name.replace("llama3.1", "llama3"))
    for known in model_config.names():
        if re.sub(r"[^a-z0-9]", "", known) == folded:
            try:
                shape = model_config.named(known)
            except DataError:
                return {}
            return {f: getattr(shape, f) for f in ("layers", "hidden", "ffn", "heads", "kv_heads", "vocab")}
    return {}


def _typical(parameters: float, layers: float | None) -> tuple[float, float]:
    """Width and depth of a GPT of that many parameters: hidden / layers of 128, as GPT-3 13B and 175B."""
    hidden = 128.0 * round((parameters * 128 / 12) ** (1 / 3) / 128)
    return hidden, layers or max(round(parameters / (12 * hidden**2)), 1)


def _usual_heads(hidden: int) -> int:
    """The largest power of two that divides the width into heads of at least 128."""
    return max((1 << i for i in range(12) if hidden % (1 << i) == 0 and hidden >> i >= 128), default=1)


def _layers(parameters: float, hidden: float, ffn: float, vocab: float, pp: int) -> int:
    each = 4 * hidden**2 + 2 * hidden * ffn
    return max(round((parameters - vocab * hidden) / each / pp), 1) * pp


def _dense(row: Row, layers: int, hidden: int, ffn: int, heads: int, vocab: int) -> TransformerShape:
    """Of the two families, Llama's and GPT's, that of the name, otherwise that with the right number of parameters."""
    kv_heads = int(number(row, "kv_heads") or heads)
    llama = TransformerShape(
        layers=layers,
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(row, hidden, heads),
        vocab=vocab,
        max_len=int(number(row, "seq_len") or 2048),
    )
    name = text(row, "model")
    mpt = "mpt" in name
    gpt = replace(llama, gated=False, norm="layernorm", learned_positions=True, tied_embeddings=True, bias=not mpt)
    if any(word in name for word in GATED):
        return llama
    if any(word in name for word in ("gpt", "bloom", "mpt", "opt", "bert", "megatron")) or ffn == 4 * hidden:
        return gpt
    parameters = (number(row, "params_b") or 0.0) * 1e9
    return min((llama, gpt), key=lambda s: abs(total_elements(s) - parameters)) if parameters else llama


def _head_dim(row: Row, hidden: int, heads: int) -> int:
    name = text(row, "model")
    if "mla" in text(row, "moe"):
        return (NOPE + ROPE + VALUE) // 2  # scores and values have different widths; their products add up to this
    if "qwen3" in name:
        return 128
    if "gpt oss" in name or "gpt-oss" in name:
        return 64
    return max(hidden // heads, 1)


def _dense_layers(count: int, layers: int, truncated: bool) -> int:
    """A model that was cut down to a few layers keeps one of those that are dense."""
    return 1 if truncated else min(count, layers)


def _experts(moe: str, shape: TransformerShape, truncated: bool) -> Experts | None:
    """From a description such as "256 routed top-8 + 1 shared, moe_ffn 2048, first 3 layers dense, MLA"."""
    routed, top = re.search(r"(\d+)\s*(?:routed|experts)", moe), re.search(r"top-?\s*(\d+)", moe)
    if routed is None or top is None:
        return None
    shared, width = re.search(r"(\d+)\s*shared", moe), re.search(r"moe_ffn\s*(\d+)", moe)
    dense = re.search(r"first\s*(\d+)\s*layers? dense", moe)
    ffn = int(width.group(1)) if width else shape.ffn
    latent = "mla" in moe
    return Experts(
        count=int(routed.group(1)),
        per_token=int(top.group(1)),
        ffn=ffn,
        shared_ffn=int(shared.group(1)) * ffn if shared else 0,
        dense_layers=_dense_layers(int(dense.group(1)), shape.layers, truncated) if dense else 0,
        latent=(Q_RANK, KV_RANK, NOPE, ROPE, VALUE) if latent else None,
    )
