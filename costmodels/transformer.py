"""Dense transformers by their sizes: named ones, and those of a Hugging Face `config.json`."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from costmodels.errors import InputError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """A decoder. `gated` has three matrices in its MLP (SwiGLU) instead of two; `norm` is rmsnorm or layernorm."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool = True
    tied_embeddings: bool = False
    norm: str = "rmsnorm"
    max_len: int = 8192

    @property
    def q_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer; biases are left out, two norms are not."""
        attention = self.hidden * (2 * self.q_dim + 2 * self.kv_dim)
        return attention + (3 if self.gated else 2) * self.hidden * self.ffn + 2 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def n_parameters(self) -> int:
        ends = self.embedding_parameters * (1 if self.tied_embeddings else 2) + self.hidden
        return self.layers * self.layer_parameters + ends

    def flops_per_token(self, seq_len: int) -> float:
        """Model FLOPs of one token, forward and backward, without recomputation (PaLM, appendix B): six for each weight of
        a product, and attention, of which a causal model needs half of the square: 6 layers q_dim seq_len."""
        products = self.layers * (self.layer_parameters - 2 * self.hidden) + self.embedding_parameters
        return 6.0 * products + 6.0 * self.layers * self.q_dim * seq_len

    def parameters(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names as in Hugging Face's Llama and shapes (out, in), in the order in which modules register them."""
        h, q, kv = self.hidden, self.q_dim, self.kv_dim
        out: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (self.vocab, h))]
        for i in range(self.layers):
            at = f"model.layers.{i}"
            for name, width in (("q", q), ("k", kv), ("v", kv)):
                out.append((f"{at}.self_attn.{name}_proj.weight", (width, h)))
            out.append((f"{at}.self_attn.o_proj.weight", (h, q)))
            for name in ("gate", "up") if self.gated else ("up",):
                out.append((f"{at}.mlp.{name}_proj.weight", (self.ffn, h)))
            out.append((f"{at}.mlp.down_proj.weight", (h, self.ffn)))
            out += [(f"{at}.input_layernorm.weight", (h,)), (f"{at}.post_attention_layernorm.weight", (h,))]
        out.append(("model.norm.weight", (h,)))
        if not self.tied_embeddings:
            out.append(("lm_head.weight", (self.vocab, h)))
        return out

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _llama(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, max_len: int) -> TransformerShape:
    return TransformerShape(
        layers=layers, hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads, head_dim=hidden // heads, vocab=vocab,
        max_len=max_len,
    )  # fmt: skip


def _gpt(layers: int, hidden: int, heads: int, vocab: int = 51200, max_len: int = 2048) -> TransformerShape:
    return TransformerShape(
        layers=layers, hidden=hidden, ffn=4 * hidden, heads=heads, kv_heads=heads, head_dim=hidden // heads, vocab=vocab,
        gated=False, tied_embeddings=True, norm="layernorm", max_len=max_len,
    )  # fmt: skip


NAMED: Mapping[str, TransformerShape] = {
    # Brown et al. 2020, table 2.1
    "gpt2_124m": _gpt(12, 768, 12, 50257, 1024),
    "gpt2_1_5b": _gpt(48, 1600, 25, 50257, 1024),
    "gpt3_6_7b": _gpt(32, 4096, 32),
    "gpt3_175b": _gpt(96, 12288, 96),
    # Korthikanti et al. 2022, table 3
    "megatron_22b": _gpt(48, 6144, 64),
    "megatron_530b": _gpt(105, 20480, 128),
    "megatron_1t": _gpt(128, 25600, 160),
    # Touvron et al. 2023; Grattafiori et al. 2024, table 3
    "llama2_7b": _llama(32, 4096, 11008, 32, 32, 32000, 4096),
    "llama2_13b": _llama(40, 5120, 13824, 40, 40, 32000, 4096),
    "llama2_70b": _llama(80, 8192, 28672, 64, 8, 32000, 4096),
    "llama3_8b": _llama(32, 4096, 14336, 32, 8, 128256, 131072),
    "llama3_70b": _llama(80, 8192, 28672, 64, 8, 128256, 131072),
    "llama3_405b": _llama(126, 16384, 53248, 128, 8, 128256, 131072),
}
"""Shapes by name."""

FIELDS = tuple(TransformerShape.__slots__)


def model_shape(given: object, base_dir: Path) -> TransformerShape:
    """A shape from a name, the path of a Hugging Face `config.json` (or its folder), or a mapping of fields.

    Raises `InputError` with every problem, fields as `workload.model...`.
    """
    if isinstance(given, str):
        if given in NAMED:
            return NAMED[given]
        path = base_dir / given
        path = path / "config.json" if path.is_dir() else path
        if path.suffix == ".json" and path.is_file():
            return from_config(path)
        close = difflib.get_close_matches(given, NAMED, n=3, cutoff=0.4)
        advice = f"Did you mean {' or '.join(close)}?" if close else ""
        allowed = f"{', '.join(NAMED)}, or the path of a config.json"
        raise InputError("unknown model", [Problem("workload.model", repr(given), allowed, advice)])
    if isinstance(given, dict):
        return from_fields(given)
    raise InputError("not a model", [Problem("workload.model", repr(given), "a name, a path or a mapping of sizes")])


def from_fields(given: Mapping[str, Any]) -> TransformerShape:
    """A shape from its own field names; kv_heads, head_dim and what has a default may be left out."""
    fields = dict(given)
    if isinstance(fields.get("heads"), int) and fields["heads"] > 0:
        fields.setdefault("kv_heads", fields["heads"])
        if isinstance(fields.get("hidden"), int):
            fields.setdefault("head_dim", fields["hidden"] // fields["heads"])
    problems = [
        Problem(f"workload.model.{key}", "an unknown field", ", ".join(FIELDS), _close(str(key)))
        for key in fields
        if key not in FIELDS
    ]
    sizes = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "max_len")
    for key in sizes:
        value = fields.get(key, 8192 if key == "max_len" else None)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000_000:
            problems.append(Problem(f"workload.model.{key}", repr(value)[:60], "a whole number from 1 to 10,000,000"))
    if isinstance(fields.get("layers"), int) and fields["layers"] > 10_000:
        problems.append(Problem("workload.model.layers", str(fields["layers"]), "at most 10,000"))
    for key in ("gated", "tied_embeddings"):
        if not isinstance(fields.get(key, True), bool):
            problems.append(Problem(f"workload.model.{key}", repr(fields[key])[:60], "true or false"))
    if fields.get("norm", "rmsnorm") not in ("rmsnorm", "layernorm"):
        problems.append(Problem("workload.model.norm", repr(fields["norm"])[:60], "rmsnorm or layernorm"))
    if not problems and fields["heads"] % fields["kv_heads"]:
        problems.append(
            Problem("workload.model.kv_heads", str(fields["kv_heads"]), f"a divisor of heads ({fields['heads']})")
        )
    if problems:
        raise InputError("a model that cannot be", problems)
    return TransformerShape(**fields)


def _close(key: str) -> str:
    close = difflib.get_close_matches(key, FIELDS, n=1)
    return f"Did you mean {close[0]}?" if close else ""


def from_config(path: Path) -> TransformerShape:
    """A shape from Hugging Face's `config.json` of a llama-like (llama, mistral, qwen2), gpt2 or gpt_neox model."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            "unreadable model", [Problem("workload.model", str(path), "a config.json", str(error))]
        ) from error
    if not isinstance(config, dict):
        raise InputError("unreadable model", [Problem("workload.model", str(path), "a JSON object")])
    if config.get("model_type") == "gpt2":
        names = {
            "layers": "n_layer",
            "hidden": "n_embd",
            "heads": "n_head",
            "vocab": "vocab_size",
            "max_len": "n_positions",
        }
    else:
        names = {
            "layers": "num_hidden_layers",
            "hidden": "hidden_size",
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "head_dim": "head_dim",
            "ffn": "intermediate_size",
            "vocab": "vocab_size",
            "max_len": "max_position_embeddings",
        }
    fields: dict[str, Any] = {ours: config[theirs] for ours, theirs in names.items() if config.get(theirs) is not None}
    old = config.get("model_type") in ("gpt2", "gpt_neox")
    if config.get("model_type") == "gpt2" and isinstance(fields.get("hidden"), int):
        fields["ffn"] = config.get("n_inner") or 4 * fields["hidden"]
    fields |= {"gated": not old, "norm": "layernorm" if old else "rmsnorm"}
    fields["tied_embeddings"] = bool(config.get("tie_word_embeddings", config.get("model_type") == "gpt2"))
    return from_fields(fields)
