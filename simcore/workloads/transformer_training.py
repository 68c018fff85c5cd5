"""Synchronous training of a dense transformer: so many sequences an iteration, forward, backward, optimizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from costmodels.transformer import TransformerShape, model_shape

Precision = Literal["float32", "bfloat16", "float16", "fp8"]


class Params(BaseModel):
    """What is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | dict[str, Any] = Field(description="A named size, the path of a Hugging Face config.json, or sizes.")
    seq_len: int = Field(ge=1, le=10_000_000, description="Tokens of a sequence.")
    global_batch: int = Field(ge=1, le=10_000_000, description="Sequences of an iteration, over all replicas.")
    precision: Precision = Field("bfloat16", description="Dtype of the matrix products.")
    grad_precision: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Dtype in which gradients are kept and reduced; default float32."
    )
    iterations: int = Field(1, ge=1, le=100_000, description="Iterations of a run.")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What planners read."""

    shape: TransformerShape
    seq_len: int
    global_batch: int
    precision: str
    grad_precision: str
    iterations: int
    seed: int

    def to_plan(self) -> dict[str, Any]:
        """The plan's `workload`: what reports count with and what `real` builds its model and its data from."""
        tokens = self.global_batch * self.seq_len
        return {
            "name": "transformer_training",
            "model": self.shape.to_dict(),
            "seq_len": self.seq_len,
            "global_batch": self.global_batch,
            "iterations": self.iterations,
            "tokens_per_iteration": tokens,
            "flops_per_iteration": tokens * self.shape.flops_per_token(self.seq_len),
            "precision": self.precision,
            "seed": self.seed,
        }


def build(params: Params, rng: np.random.Generator, base_dir: Path) -> Workload:
    """The workload; paths are relative to `base_dir`. Raises `InputError` for a model that cannot be."""
    return Workload(
        shape=model_shape(params.model, base_dir),
        seq_len=params.seq_len,
        global_batch=params.global_batch,
        precision=params.precision,
        grad_precision=params.grad_precision or "float32",
        iterations=params.iterations,
        seed=int(rng.integers(2**31)),
    )
