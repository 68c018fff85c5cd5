"""Transformer shapes by name (one YAML each in `costmodels/models`) and from Hugging Face's `config.json`."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from costmodels.errors import DataError, Problem
from costmodels.transformer import TransformerShape

MODELS = Path(__file__).parent / "models"
FIELDS = tuple(f.name for f in fields(TransformerShape))

EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox")


def names() -> tuple[str, ...]:
    """Every named size, sorted."""
    return tuple(sorted(path.stem for path in MODELS.glob("*.yaml")))


def named(name: str) -> TransformerShape:
    """The shape of a named size, e.g. `llama3_405b`. Raises `DataError` for a name that no file has."""
    wanted = name.strip().lower().replace("-", "_").replace(".", "_")
    if wanted not in names():
        close = difflib.get_close_matches(wanted, names(), n=4, cutoff=0.4)
        advice = f"Did you mean {' or '.join(close)}?" if close else "Or the path of a Hugging Face config.json."
        raise DataError("unknown model", [Problem("model", repr(name)[:80], ", ".join(names()), advice)])
    return TransformerShape(**{k: v for k, v in document(wanted).items() if k in FIELDS})


@lru_cache(maxsize=128)
def document(name: str) -> Mapping[str, Any]:
    """The file of a named size: the shape's fields, `source`, and the published number of `parameters`."""
    loaded: Mapping[str, Any] = yaml.safe_load((MODELS / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def load(path: Path) -> TransformerShape:
    """The shape that a `config.json` (or the folder with it) describes. Raises `DataError` with everything it lacks."""
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read", [Problem("model", str(path), "a config.json in JSON", str(error))]
        ) from error
    if not isinstance(config, dict):
        raise DataError(
            f"{path} is not a model config", [Problem("model", type(config).__name__, "a JSON object of settings")]
        )
    return from_config(config)


def from_config(config: Mapping[str, Any]) -> TransformerShape:
    """The shape in Hugging Face's keys of the families llama, mistral, qwen2, qwen3, gpt2 and gpt_neox.

    Raises `DataError` for other families, mixtures of experts, and keys that are missing or not positive integers.
    """
    family = config.get("model_type")
    problems: list[Problem] = []
    if family not in FAMILIES:
        problems.append(Problem("model.model_type", repr(family)[:80], ", ".join(FAMILIES)))
    problems += [
        Problem(f"model.{key}", repr(config[key])[:80], "dense transformers, without experts")
        for key in EXPERTS
        if config.get(key)
    ]
    reader = _Config(config, problems)
    if problems:
        raise DataError("not the config of a dense transformer that is known here", problems)
    shape = _gpt2(reader) if family == "gpt2" else _gpt_neox(reader) if family == "gpt_neox" else _llama(reader)
    if problems:
        raise DataError("an incomplete model config", problems)
    return shape


@dataclass(slots=True)
class _Config:
    """Reads positive integers and flags; what is wrong goes to `problems`."""

    values: Mapping[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def size(self, *keys: str, default: int | None = None) -> int:
        """The first of `keys` that is there."""
        value: Any = next((self.values[k] for k in keys if self.values.get(k) is not None), default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            given = "nothing" if value is None else repr(value)[:80]
            self.problems.append(Problem(f"model.{keys[0]}", given, "an integer of at least 1"))
            return 1
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.problems.append(Problem(f"model.{key}", repr(value)[:80], "true or false"))
        return bool(value)


def _llama(config: _Config) -> TransformerShape:
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    family = config.values["model_type"]
    return TransformerShape(
        layers=config.size("num_hidden_layers"),
        hidden=hidden,
        ffn=config.size("intermediate_size"),
        heads=heads,
        kv_heads=config.size("num_key_value_heads", default=heads),
        head_dim=config.size("head_dim", default=max(hidden // heads, 1)),
        vocab=config.size("vocab_size"),
        max_len=config.size("max_position_embeddings", default=2048),
        tied_embeddings=config.flag("tie_word_embeddings", False),
        qkv_bias=config.flag("attention_bias", family == "qwen2"),
    )


def _gpt2(config: _Config) -> TransformerShape:
    hidden, heads = config.size("n_embd"), config.size("n_head")
    return TransformerShape(
        layers=config.size("n_layer"),
        hidden=hidden,
        ffn=config.size("n_inner", default=4 * hidden),
        heads=heads,
        kv_heads=heads,
        head_dim=max(hidden // heads, 1),
        vocab=config.size("vocab_size"),
        max_len=config.size("n_positions", "n_ctx", default=1024),
        gated=False,
        tied_embeddings=config.flag("tie_word_embeddings", True),
        norm="layernorm",
        learned_positions=True,
        bias=True,
    )


def _gpt_neox(config: _Config) -> TransformerShape:
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    return TransformerShape(
        layers=config.size("num_hidden_layers"),
        hidden=hidden,
        ffn=config.size("intermediate_size"),
        heads=heads,
        kv_heads=heads,
        head_dim=max(hidden // heads, 1),
        vocab=config.size("vocab_size"),
        max_len=config.size("max_position_embeddings", default=2048),
        gated=False,
        tied_embeddings=config.flag("tie_word_embeddings", False),
        norm="layernorm",
        bias=True,
    )


def described(shape: TransformerShape) -> dict[str, Any]:
    """The shape's fields as a mapping that JSON can hold."""
    return {name: getattr(shape, name) for name in FIELDS}


def problems_of(shape: TransformerShape) -> Sequence[Problem]:
    """Sizes that contradict each other."""
    found = []
    if shape.heads % shape.kv_heads:
        found.append(
            Problem(
                "model.kv_heads",
                str(shape.kv_heads),
                f"a divisor of the {shape.heads} heads that share keys and values",
            )
        )
    return found
