"""Training a dense decoder-only transformer: which model, how many tokens at once, in which precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from costmodels import model_config
from costmodels.transformer import TransformerShape, total_elements, training_flops
from simcore.errors import Problem, ScenarioError

Precision = Literal["float32", "tf32", "float16", "bfloat16", "fp8"]
MOST = 1 << 24


class Shape(BaseModel):
    """Sizes of a transformer, written out."""

    model_config = ConfigDict(extra="forbid")

    layers: int = Field(ge=1, le=10_000, description="Transformer layers.")
    hidden: int = Field(ge=1, le=MOST, description="Width of the residual stream.")
    ffn: int = Field(ge=1, le=MOST, description="Inner width of the MLP.")
    heads: int = Field(ge=1, le=65_536, description="Attention heads.")
    kv_heads: int | None = Field(None, ge=1, le=65_536, description="Heads of keys and values; default: as many.")
    head_dim: int | None = Field(None, ge=1, le=65_536, description="Width of a head; default: hidden / heads.")
    vocab: int = Field(ge=1, le=MOST, description="Tokens in the vocabulary.")
    max_len: int = Field(8192, ge=1, le=1 << 30, description="Longest sequence.")
    gated: bool = Field(True, description="SwiGLU (gate beside up) rather than GELU.")
    tied_embeddings: bool = Field(False, description="The head uses the embedding's weight.")
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="Kind of norm.")
    learned_positions: bool = Field(False, description="Learned positions instead of rotary ones.")
    qkv_bias: bool = Field(False, description="Biases in the projections of queries, keys and values.")
    bias: bool = Field(False, description="Biases in all linear layers but the head.")

    @model_validator(mode="after")
    def _head_dim_is_known(self) -> Self:
        if self.head_dim is None and self.hidden % self.heads:
            raise ValueError("`hidden` must be a multiple of `heads`, or `head_dim` given")
        return self

    def shape(self) -> TransformerShape:
        fields = self.model_dump()
        fields["kv_heads"] = self.kv_heads or self.heads
        fields["head_dim"] = self.head_dim or self.hidden // self.heads
        return TransformerShape(**fields)


class Params(BaseModel):
    """A training job."""

    model_config = ConfigDict(extra="forbid")

    model: str | Shape = Field(
        description="A named size (llama3_70b, gpt3_175b, ...), the path of a Hugging Face config.json, or sizes."
    )
    seq_len: int = Field(ge=1, le=MOST, description="Tokens of a sequence.")
    global_batch: int = Field(ge=1, le=MOST, description="Sequences of an iteration, over all replicas.")
    precision: Precision = Field("bfloat16", description="What matrix products compute in.")
    iterations: int = Field(1, ge=1, le=100_000, description="Iterations that a run plays.")
    dropout: bool = Field(False, description="Dropout on attention and residuals, as GPT-3 was trained.")
    count_flops: Literal["full", "causal"] = Field(
        "full", description="Model FLOPs of attention: the full square (PaLM, Megatron-LM) or its causal half."
    )


@dataclass(frozen=True, kw_only=True)
class TransformerTraining:
    """The workload. `seed` is for drawing data; it is the same for both backends."""

    model: TransformerShape
    seq_len: int
    global_batch: int
    precision: str
    iterations: int = 1
    dropout: bool = False
    causal_flops: bool = False
    seed: int = 0

    @property
    def tokens_per_iteration(self) -> int:
        return self.seq_len * self.global_batch

    def described(self) -> dict[str, Any]:
        """What reports and the real backend need to know, as JSON can hold it."""
        return {
            "name": "transformer_training",
            "model": model_config.described(self.model),
            "parameters": total_elements(self.model),
            "seq_len": self.seq_len,
            "global_batch": self.global_batch,
            "precision": self.precision,
            "dropout": self.dropout,
            "iterations": self.iterations,
            "tokens_per_iteration": self.tokens_per_iteration,
            "flops_per_iteration": training_flops(
                self.model, self.seq_len, self.global_batch, causal=self.causal_flops
            ),
            "seed": self.seed,
        }


def build(params: Params, rng: np.random.Generator, base_dir: Path) -> TransformerTraining:
    """The workload; paths of models are relative to `base_dir`. Raises `ScenarioError` or `DataError` naming the field."""
    model = model_of(params.model, base_dir)
    problems = list(model_config.problems_of(model))
    if params.seq_len > model.max_len and model.learned_positions:
        problems.append(
            Problem(
                "seq_len", str(params.seq_len), f"at most {model.max_len}, the positions that the model has learned"
            )
        )
    if problems:
        raise ScenarioError("a workload that contradicts itself", problems)
    return TransformerTraining(
        model=model,
        seq_len=params.seq_len,
        global_batch=params.global_batch,
        precision=params.precision,
        iterations=params.iterations,
        dropout=params.dropout,
        causal_flops=params.count_flops == "causal",
        seed=int(rng.integers(2**31)),
    )


def model_of(name: str | Shape, base_dir: Path) -> TransformerShape:
    """Sizes that are written out; a path relative to `base_dir` if it looks like one; otherwise a named size."""
    if isinstance(name, Shape):
        return name.shape()
    if name.endswith(".json") or "/" in name:
        return model_config.load(base_dir / name)
    return model_config.named(name)
