"""What is trained: algorithm, model, batch, optimiser."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from simcore.errors import InputError, Problem

Algorithm = Literal["ppo", "grpo", "remax", "safe_rlhf"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)

TINY: Mapping[str, Any] = {
    "layers": 2,
    "hidden": 32,
    "ffn": 64,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 8,
    "vocab": 32,
    "max_len": 64,
    "tied_embeddings": False,
}
"""A Llama that learns the task of `task.py` in seconds on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Raises `InputError` where sizes contradict each other.

    `model` is sizes of a Llama, whose weights follow from the seed unless it says of which `pretrained` model they are.
    An iteration answers `prompts` prompts `answers` times each, then goes `epochs` times through its sequences in `minibatches`
    updates. `kl` weighs the distance to the reference model: in token rewards (PPO, ReMax, Safe-RLHF) or in the loss (GRPO).
    """

    algorithm: Algorithm = "ppo"
    model: Mapping[str, Any] = field(default_factory=lambda: TINY)
    prompts: int = 8
    answers: int = 1
    prompt_len: int = 4
    response_len: int = 6
    epochs: int = 1
    minibatches: int = 2
    learning_rate: float = 1e-3
    critic_learning_rate: float = 1e-3
    adam_epsilon: float = 1e-5
    """As PPO's implementations have it (Huang et al., 2022): gradients that are nothing but rounding move nothing."""
    clip: float = 0.2
    value_clip: float = 0.2
    kl: float = 0.02
    gamma: float = 1.0
    lam: float = 0.95
    cost_limit: float = 0.1
    multiplier_rate: float = 0.5
    """Of Safe-RLHF's Lagrange multiplier: what it grows by for each unit of mean cost above `cost_limit`."""
    pretrain: float = 0.1
    """Weight of the language-model loss on pretraining text in Safe-RLHF's actor update."""
    seed: int = 0

    @property
    def sequences(self) -> int:
        """Of an iteration."""
        return self.prompts * self.answers

    @property
    def minibatch(self) -> int:
        """Sequences of an update."""
        return self.sequences // self.minibatches

    @property
    def has_critic(self) -> bool:
        return self.algorithm in ("ppo", "safe_rlhf")

    @property
    def roles(self) -> tuple[str, ...]:
        """Models of the dataflow."""
        critic = ("critic",) if self.has_critic else ()
        cost = ("cost",) if self.algorithm == "safe_rlhf" else ()
        return ("actor", *critic, "reference", "reward", *cost)

    @property
    def end(self) -> int:
        """The token that ends a response."""
        return int(self.model.get("end", 0))

    @property
    def pretrained(self) -> bool:
        """Whether training starts from weights that a package carries."""
        return "pretrained" in self.model

    def __post_init__(self) -> None:
        length = self.prompt_len + self.response_len
        rules = [
            ("algorithm", self.algorithm, self.algorithm in ALGORITHMS, ", ".join(ALGORITHMS)),
            ("answers", self.answers, self.algorithm == "grpo" or self.answers == 1, "1, or algorithm grpo"),
            ("answers", self.answers, self.algorithm != "grpo" or self.answers > 1, "at least 2: GRPO compares them"),
            ("minibatches", self.minibatches, self.sequences % self.minibatches == 0, f"a divisor of {self.sequences}"),
            ("prompt_len", self.prompt_len, length <= int(self.model["max_len"]), "prompt and response within max_len"),
        ]
        problems = [Problem(name, str(given), allowed) for name, given, holds, allowed in rules if not holds]
        if problems:
            raise InputError("an RLHF job cannot be run", problems)
