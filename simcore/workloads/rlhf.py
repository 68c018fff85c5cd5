"""Reinforcement learning from human feedback: an algorithm, a model for each role, lengths of prompts and responses."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from costmodels import model_config
from costmodels.serving import NAMES
from costmodels.transformer import TransformerShape, forward_flops_per_token, total_elements
from simcore.errors import Problem, ScenarioError
from simcore.hybridflow.dataflow import (
    BUILT_IN,
    Call,
    Dataflow,
    Kind,
    Stage,
    call,
    own,
    with_checks,
    with_log_prob,
    with_pretraining,
)
from simcore.hybridflow.lengths import Lengths, draw
from simcore.validation import suggestion
from simcore.workloads.transformer_training import Shape, model_of

Ints = NDArray[np.int64]
MOST_SEQUENCES = 1 << 18
PADDED = "transformers"
"""The engine without continuous batching: `generate` of Hugging Face, and what the real backend has."""
MODELS_OF_TOKENS = ("actor", "reference")
"""Roles whose model has a head over the vocabulary; all others have one that gives a single number, unless they generate."""
JUDGES = ("reward", "cost")
"""Roles that score in some algorithm. All may be `checked`, so that a scenario's algorithm can be changed by itself."""


class CallSpec(BaseModel):
    """A call of your own dataflow."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, description="A name of its own.")
    kind: Kind = Field(description="generate, forward, train, or compute (numbers only, no model).")
    role: str = Field("", max_length=100, description="The model that is called; none for compute.")
    after: list[str] = Field(default_factory=list, description="Calls whose results it needs.")
    stage: Stage | None = Field(None, description="generation, preparation or training; default: by its kind.")
    share: float = Field(1.0, gt=0, le=1, description="Part of the batch that it works on.")

    def call(self) -> Call:
        return call(self.name, self.kind, self.role, *self.after, stage=self.stage, share=self.share)


class Generation(BaseModel):
    """The engine that generates."""

    model_config = ConfigDict(extra="forbid")

    engine: str = Field(
        "vllm", description="Whose kernels and host code: vllm, trt-llm, deepspeed, ...; transformers for real runs."
    )
    max_num_seqs: int = Field(256, ge=1, le=65_536, description="Most sequences at a time (vLLM's default).")
    memory_share: float = Field(
        0.9, gt=0, le=1, description="Of a device's memory, that everything together may take (vLLM's default)."
    )

    @property
    def padded(self) -> bool:
        """Whether a replica answers all of its prompts at once, every step with all of them until the longest answer ends."""
        return self.engine == PADDED


class Params(BaseModel):
    """An RLHF job."""

    model_config = ConfigDict(extra="forbid")

    algorithm: Literal["ppo", "remax", "safe_rlhf", "grpo"] | None = Field(
        None, description="A known dataflow, instead of `calls`."
    )
    calls: list[CallSpec] | None = Field(None, min_length=1, max_length=100, description="Your own dataflow.")
    model: str | Shape = Field(description="Of all roles: a named size, the path of a config.json, or sizes.")
    models: dict[str, str | Shape] = Field(default_factory=dict, description="By role, where it has another model.")
    prompts: int = Field(ge=1, le=MOST_SEQUENCES, description="Prompts of an iteration.")
    samples: int = Field(1, ge=1, le=1024, description="Responses to each prompt (GRPO: the size of a group).")
    prompt_len: Lengths = Field(description="Tokens of prompts: a number, or a distribution.")
    response_len: Lengths = Field(description="Tokens of responses: a number, or a distribution.")
    epochs: int = Field(1, ge=1, le=100, description="Times that training goes over the batch.")
    updates: int = Field(8, ge=1, le=4096, description="Updates of each epoch; each has a minibatch.")
    checked: list[str] = Field(
        default_factory=list,
        description="Roles whose scores come from a check in code instead of a model, such as a reward that can be verified. "
        "A role that the algorithm does not have is left out.",
    )
    recompute_log_prob: bool = Field(
        False,
        description="Log-probabilities of responses by a forward pass of the actor, as in verl; default: those of generation.",
    )
    train_on_pretraining: bool = Field(
        False,
        description="Safe-RLHF: every update of the actor learns from as much pretraining text as answers; default: one forward "
        "pass for that loss, as HybridFlow counts.",
    )
    precision: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="What products compute in; float32 on a CPU."
    )
    generation: Generation = Field(
        default_factory=lambda: Generation.model_validate({}), description="How responses are generated."
    )
    offload: list[str] = Field(
        default_factory=list, description="Roles whose states stay in the host's memory while they do nothing."
    )
    iterations: int = Field(1, ge=1, le=1000, description="Iterations that a run plays.")


@dataclass(frozen=True, kw_only=True)
class Rlhf:
    """The workload. `prompt_len` and `response_len` are (sequences,); `models` has a shape for every role."""

    dataflow: Dataflow
    models: dict[str, TransformerShape]
    prompt_len: Ints = field(repr=False)
    response_len: Ints = field(repr=False)
    samples: int = 1
    epochs: int
    updates: int
    precision: str
    generation: Generation
    offload: frozenset[str]
    iterations: int
    seed: int
    checked: tuple[str, ...] = ()

    @property
    def sequences(self) -> int:
        return len(self.prompt_len)

    @property
    def seq_len(self) -> int:
        """Mean tokens of a sequence, rounded up to a multiple of 64; training packs sequences without padding."""
        mean = (self.prompt_len.sum() + self.response_len.sum()) / self.sequences
        return int(-(-mean // 64) * 64)

    @property
    def minibatch(self) -> int:
        """Sequences of an update."""
        return -(-self.sequences // self.updates)

    def of_minibatch(self, share: float) -> int:
        """Sequences of an update that works on a share of the batch."""
        return max(round(share * self.minibatch), 1)

    @property
    def tokens_per_iteration(self) -> int:
        """Prompts and responses, once, as HybridFlow counts."""
        return int(self.prompt_len.sum() + self.response_len.sum())

    @property
    def lengths(self) -> dict[str, list[int]]:
        """Shortest and longest prompt and response, in tokens."""
        return {
            name: [int(lengths.min()), int(lengths.max())]
            for name, lengths in (("prompt", self.prompt_len), ("response", self.response_len))
        }

    def trained(self, role: str) -> TransformerShape:
        """The shape that training and forward calls have: without a head over the vocabulary where the role gives one number.

        The embedding of such a role is left out with its head: 2 % of a 7B model.
        """
        shape = self.models[role]
        return shape if self.speaks(role) else replace(shape, vocab=1, tied_embeddings=False)

    def speaks(self, role: str) -> bool:
        """Whether the role's model has a head over the vocabulary."""
        return role in MODELS_OF_TOKENS or self.dataflow.generates(role)

    def described(self) -> dict[str, Any]:
        """What reports and the real backend need to know, as JSON can hold it."""
        return {
            "name": "rlhf",
            **({"checked": list(self.checked)} if self.checked else {}),
            **({"lengths": self.lengths} if self.generation.padded else {}),
            "algorithm": self.dataflow.name,
            "models": {role: model_config.described(shape) for role, shape in self.models.items()},
            "parameters": {role: total_elements(shape) for role, shape in self.models.items()},
            "sequences": self.sequences,
            "prompts": self.sequences // self.samples,
            "samples": self.samples,
            "prompt_tokens": int(self.prompt_len.sum()),
            "response_tokens": int(self.response_len.sum()),
            "longest_response": int(self.response_len.max()),
            "epochs": self.epochs,
            "updates": self.updates,
            "precision": self.precision,
            "generation": self.generation.model_dump(),
            "offload": sorted(self.offload),
            "iterations": self.iterations,
            "tokens_per_iteration": self.tokens_per_iteration,
            "flops_per_iteration": self.flops(),
            "seed": self.seed,
        }

    def flops(self) -> float:
        """Model FLOPs of an iteration: forward passes of all calls, two more for training, nothing computed again."""
        total = 0.0
        for c in self.dataflow.calls:
            if c.role:
                passes = 3 * self.epochs if c.kind == "train" else 1
                each = forward_flops_per_token(self.trained(c.role), self.seq_len, causal=True)
                total += c.share * passes * each * self.tokens_per_iteration
        return total


def build(params: Params, rng: np.random.Generator, base_dir: Path) -> Rlhf:
    """The workload; paths of models are relative to `base_dir`. Raises `ScenarioError` or `DataError` naming the field."""
    dataflow = _dataflow(params)
    problems = list(_problems(params, dataflow))
    if problems:
        raise ScenarioError("a workload that contradicts itself", problems)
    checked = tuple(role for role in params.checked if role in dataflow.roles)
    dataflow = with_checks(dataflow, checked)
    if params.train_on_pretraining:
        dataflow = with_pretraining(dataflow)
    if params.recompute_log_prob:
        dataflow = with_log_prob(dataflow)
    n = params.prompts * params.samples
    prompts = np.repeat(draw(params.prompt_len, params.prompts, rng), params.samples)
    return Rlhf(
        dataflow=dataflow,
        models={role: model_of(params.models.get(role, params.model), base_dir) for role in dataflow.roles},
        prompt_len=prompts,
        response_len=draw(params.response_len, n, rng),
        samples=params.samples,
        epochs=params.epochs,
        updates=params.updates,
        precision=params.precision,
        generation=params.generation,
        offload=frozenset(params.offload),
        iterations=params.iterations,
        seed=int(rng.integers(2**31)),
        checked=checked,
    )


def _dataflow(params: Params) -> Dataflow:
    if (params.algorithm is None) == (params.calls is None):
        given = "both" if params.calls else "neither"
        raise ScenarioError("no dataflow", [Problem("algorithm", given, "either `algorithm` or `calls`")])
    if params.algorithm is not None:
        return BUILT_IN[params.algorithm]()
    assert params.calls is not None
    return own("own", [spec.call() for spec in params.calls])


def _problems(params: Params, dataflow: Dataflow) -> list[Problem]:
    found = []
    own_roles, judging = dataflow.roles, tuple(dict.fromkeys((*dataflow.roles, *JUDGES)))
    for name, roles, allowed in (
        ("models", list(params.models), own_roles),
        ("offload", params.offload, own_roles),
        ("checked", params.checked, judging),
    ):
        found += [
            Problem(f"{name}.{role}", role, ", ".join(allowed), suggestion(role, allowed))
            for role in roles
            if role not in allowed
        ]
    found += [
        Problem("checked", role, "a role that neither trains nor generates")
        for role in params.checked
        if dataflow.kinds_of(role) - {"forward"}
    ]
    n = params.prompts * params.samples
    if n < params.updates:
        found.append(Problem("updates", str(params.updates), f"at most the {n} sequences of an iteration"))
    engine, engines = params.generation.engine, (*NAMES, PADDED)
    if engine not in engines:
        found.append(Problem("generation.engine", engine, ", ".join(engines), suggestion(engine, engines)))
    return found
