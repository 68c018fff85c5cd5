"""Shapes of the models that published measurements name in passing: "Llama 2 7 B", "meta-llama/Llama-3.1-8B", "13B dense (40L)"."""

import re
from functools import lru_cache
from math import isfinite

from costmodels.model_config import named, names
from costmodels.transformer import TransformerShape

ALIASES = {
    "llama30b": "llama_33b",
    "llama3170b": "llama3_70b",
    "llama318b": "llama3_8b",
    "llama31405b": "llama3_405b",
    "llama38binstruct": "llama3_8b",
    "llama3370b": "llama3_70b",
    "bloom": "bloom_176b",
    "gptneox": "gpt_neox_20b",
    "mistral7bv01": "mistral_7b",
    "phi1513b": "phi_1_5",
    "phi15": "phi_1_5",
    "opt175b": "gpt3_175b",
    "gpt3": "gpt3_175b",
}
"""Folded names and the file of `costmodels/models` that has their shape."""
MIXTURES = re.compile(r"\d+b-?a\d+b|\d+x\d+b|mixtral|moe|deepseek|gpt-oss|kimi", re.IGNORECASE)
"""Names of mixtures of experts, which this model of dense transformers cannot price."""


def fold(name: str) -> str:
    """Letters and digits of what comes after the organisation."""
    return re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower())


def shape_of(
    name: str, layers: float = 0, hidden: float = 0, heads: float = 0, kv_heads: float = 0, params_b: float = 0
) -> TransformerShape | None:
    """By name; else from the sizes that are given (zero or NaN: not given); else from the number of parameters, which is given or
    in the name. None where nothing is known, and for mixtures of experts."""
    sizes = tuple(int(x) if x and isfinite(x) else 0 for x in (layers, hidden, heads, kv_heads))
    return _shape_of(name, *sizes, float(params_b) if params_b and isfinite(params_b) else 0.0)


@lru_cache(maxsize=512)
def _shape_of(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, params_b: float
) -> TransformerShape | None:
    if MIXTURES.search(name):
        return None
    wanted = fold(name)
    known = {fold(n): n for n in names()} | ALIASES
    found = known.get(wanted) or known.get(re.sub(r"(instruct|chat|base|hf|it)+$", "", wanted))
    if found and not (layers and named(found).layers != layers):
        return named(found)
    if layers and hidden and heads:
        return _plain(wanted, layers, hidden, heads, kv_heads or heads)
    size = re.search(r"(\d+(?:\.\d+)?)\s*b\b", name.lower())
    billions = params_b or (float(size[1]) if size else 0.0)
    return _of_parameters(billions) if billions else None


def _plain(name: str, layers: int, hidden: int, heads: int, kv_heads: int) -> TransformerShape:
    """A GPT: an MLP of four times the width. Encoders have no head over the vocabulary."""
    llama = "llama" in name or "qwen" in name or "mistral" in name
    return TransformerShape(
        layers=layers,
        hidden=hidden,
        ffn=int(8 / 3 * hidden) if llama else 4 * hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=max(hidden // heads, 1),
        vocab=1 if "bert" in name else 32000 if llama else 51200,
        max_len=2048,
        gated=llama,
        tied_embeddings=not llama,
    )


def _of_parameters(billions: float) -> TransformerShape:
    """Llama's proportions: 12 hidden^2 parameters a layer, a layer for each 128 of the width, heads of 128."""
    heads = max(round((billions * 1e9 * 128 / 12) ** (1 / 3) / 128), 1)
    return TransformerShape(
        layers=heads,
        hidden=128 * heads,
        ffn=int(8 / 3 * 128 * heads),
        heads=heads,
        kv_heads=heads if billions < 30 else max(heads // 8, 1),
        head_dim=128,
        vocab=32000,
        max_len=4096,
    )
