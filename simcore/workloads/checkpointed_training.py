"""Training a transformer with checkpoints, on machines that fail: how often to save is left to the planner or given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from simcore.quantity import Bytes, Seconds
from simcore.workloads import transformer_training
from simcore.workloads.transformer_training import TransformerTraining


class Params(transformer_training.Params):
    """A training job, what is saved beside the model and its optimizer, and how often machines fail."""

    every: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Iterations from one checkpoint to the next; default: the planner's choice.",
    )
    loader: Bytes = Field(0.0, description="Buffers of each replica's data loader (tokens waiting to be packed).")
    loader_workers: int = Field(
        4, ge=1, le=1024, description="Worker processes of a loader, each with a file of its own."
    )
    mtbf: Seconds = Field(
        180e6, gt=0, description="Mean time between failures of one device that stop the job; default: 50,000 hours."
    )
    restart: Seconds = Field(
        300.0, description="From a failure until processes run again and can load: noticing it, replacing what broke."
    )
    failures: float = Field(
        1.0, gt=0.1, le=10.0, description="Shape of Weibull's distribution of times between failures; 1: exponential."
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointedTraining:
    """The workload. `seed` is for drawing failures. Of a device `mtbf_s` is the mean time between failures."""

    training: TransformerTraining
    every: int | None = None
    loader_B: float = 0.0
    loader_workers: int = 4
    mtbf_s: float = 180e6
    restart_s: float = 300.0
    failure_shape: float = 1.0
    seed: int = 0

    def described(self, iterations: int = 1) -> dict[str, Any]:
        """What reports need to know of so many iterations with one checkpoint, as JSON can hold it."""
        one = self.training.described()
        each = {key: one[key] * iterations for key in ("tokens_per_iteration", "flops_per_iteration")}
        return {
            **one,
            **each,
            "name": "checkpointed_training",
            "iterations": 1,
            "trained_iterations": iterations,
            "loader_B": self.loader_B,
            "loader_workers": self.loader_workers,
            "mtbf_s": self.mtbf_s,
            "restart_s": self.restart_s,
            "failure_shape": self.failure_shape,
            "seed": self.seed,
        }


def build(params: Params, rng: np.random.Generator, base_dir: Path) -> CheckpointedTraining:
    """The workload; raises as `transformer_training.build`."""
    training = transformer_training.build(params, rng, base_dir)
    return CheckpointedTraining(
        training=training,
        every=params.every,
        loader_B=params.loader,
        loader_workers=params.loader_workers,
        mtbf_s=params.mtbf,
        restart_s=params.restart,
        failure_shape=params.failures,
        seed=int(rng.integers(2**31)),
    )
