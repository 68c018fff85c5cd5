"""Synchronous data parallel training of a graph of operators, whose precisions a planner chooses."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from costmodels import precision_kernels as kernels
from costmodels.kernels import flops
from costmodels.operator_graph import OperatorGraph, load, named
from costmodels.precision import ADJUSTABLE, allowed, of_device
from simcore.errors import Problem, ScenarioError
from simcore.validation import suggestion

if TYPE_CHECKING:
    from simcore.cluster import Cluster
    from simcore.plan import Plan

MOST = 1 << 24


class Params(BaseModel):
    """A training job."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="A traced model (resnet50, bert_base, ...), or the path of a graph's JSON.")
    batch: int | None = Field(None, ge=1, le=MOST, description="Samples on each rank; or give `global_batch`.")
    global_batch: int | None = Field(None, ge=1, le=MOST, description="Samples of an iteration, over all ranks.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="What updates the parameters.")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Of sgd; 0 keeps no state.")
    iterations: int = Field(1, ge=1, le=100_000, description="Iterations that a run plays.")
    statistics: str | None = Field(None, description="Statistics of the model's tensors: a name, or a path of a JSON.")

    @model_validator(mode="after")
    def _one_batch(self) -> Self:
        if (self.batch is None) == (self.global_batch is None):
            raise ValueError("give either `batch` or `global_batch`")
        return self


@dataclass(frozen=True, kw_only=True)
class OperatorTraining:
    """The workload. `seed` is for drawing data and weights; it is the same for both backends."""

    graph: OperatorGraph
    model: str
    batch: int | None
    global_batch: int | None
    optimizer: str
    momentum: float
    iterations: int
    statistics: str | None
    base_dir: Path
    seed: int = 0

    @property
    def optimizer_kernel(self) -> str:
        """The kernel of `costmodels.kernels` that updates parameters."""
        return "sgd_momentum" if self.optimizer == "sgd" and self.momentum else self.optimizer

    def samples(self, n_ranks: int) -> int:
        """Samples of an iteration on so many ranks."""
        return self.global_batch if self.global_batch is not None else (self.batch or 0) * n_ranks

    @cached_property
    def flops_per_sample(self) -> float:
        """Of products and convolutions, forward and backward."""
        return sum(
            flops(k)
            for o in self.graph
            if o.kind in ADJUSTABLE
            for k in (
                *kernels.forward(self.graph, o, 1, "float32"),
                *kernels.backward(self.graph, o, 1, "float32", "float32"),
            )
        )

    def problems_of(self, plan: "Plan", cluster: "Cluster") -> list[Problem]:
        """What a plan's precisions name that the graph, the cluster or a device does not have."""
        has = {device.name: of_device(device) for device in cluster.devices}
        found = []
        for group, chosen in plan.decisions.get("precision", {}).items():
            if group not in has:
                advice = suggestion(group, list(has)) or "Name a device of the cluster."
                found.append(Problem(f"decisions.precision.{group}", group, ", ".join(has), advice))
                continue
            for name, precision in chosen.items():
                problem = self._problem(group, name, precision, has[group])
                found += [problem] if problem else []
        return found

    def _problem(self, group: str, name: str, precision: str, has: tuple[str, ...]) -> Problem | None:
        field = f"decisions.precision.{group}.{name}"
        adjustable = [o.name for o in self.graph if o.kind in ADJUSTABLE]
        if name not in adjustable:
            advice = suggestion(name, adjustable) or "Plan it again, or leave the operator out."
            return Problem(field, name, f"one of the {len(adjustable)} adjustable operators of {self.model}", advice)
        possible = allowed(self.graph[name], has)
        if precision in possible:
            return None
        return Problem(
            field, str(precision), ", ".join(possible), f"{group} does not have it for a {self.graph[name].kind}."
        )

    def described(self, n_ranks: int) -> dict[str, Any]:
        """What reports and the real backend need to know, as JSON can hold it."""
        samples = self.samples(n_ranks)
        return {
            "name": "operator_training",
            "model": self.model,
            "sample": self.graph.sample,
            "parameters": self.graph.elements,
            "optimizer": self.optimizer,
            "momentum": self.momentum,
            "iterations": self.iterations,
            "seed": self.seed,
            "global_batch": samples,
            "samples_per_iteration": samples,
            "flops_per_iteration": self.flops_per_sample * samples,
        }


def build(params: Params, rng: np.random.Generator, base_dir: Path) -> OperatorTraining:
    """The workload; paths are relative to `base_dir`. Raises `DataError` for an unknown model, `ScenarioError` for a lost file."""
    fields = params.model_dump()
    return OperatorTraining(
        graph=_graph(params.model, base_dir), base_dir=base_dir, seed=int(rng.integers(2**31)), **fields
    )


def _graph(model: str, base_dir: Path) -> OperatorGraph:
    if not (model.endswith(".json") or "/" in model):
        return named(model)
    try:
        return load(base_dir / model)
    except OSError as error:
        problem = Problem("model", str(base_dir / model), "a graph written by `windtunnel trace-model`")
        raise ScenarioError(f"a graph that cannot be read: {error.strerror}", [problem]) from error
