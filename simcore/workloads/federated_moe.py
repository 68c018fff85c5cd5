"""Federated training of a mixture of experts: the model, what each client has to learn from, who comes and who leaves."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simcore.errors import Problem, ScenarioError
from simcore.federated.moe_model import MoEShape
from simcore.quantity import Seconds

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SAMPLES, DOMAINS, GATES, CHOICE, DROPOUT, ONLINE, PAIRS = range(7)
"""What is drawn, each from its own stream of random numbers."""


class Model(BaseModel):
    """A mixture of experts: an embedding network, a gate, and experts of one hidden layer."""

    model_config = ConfigDict(extra="forbid")

    image: tuple[int, int, int] = Field((1, 28, 28), description="Channels, height and width of a sample.")
    channels: list[int] = Field([8, 16, 16], max_length=16, description="Filters of 3 x 3 convolutions of stride 2.")
    width: int = Field(64, ge=1, le=1 << 16, description="Features that the embedding network makes of a sample.")
    experts: int = Field(8, ge=1, le=1024, description="Experts of each client.")
    hidden: int = Field(128, ge=1, le=1 << 16, description="Width of an expert's hidden layer.")
    top_k: int = Field(2, ge=1, description="Experts that a sample visits.")
    classes: int = Field(10, ge=2, le=1 << 16, description="Classes that experts tell apart.")

    @model_validator(mode="after")
    def _routes_to_experts(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError("`top_k` is at most `experts`")
        if min(*self.image, *(self.channels or [1])) < 1:
            raise ValueError("sizes of `image` and `channels` are at least 1")
        return self


class Availability(BaseModel):
    """Clients come and go: each is online for a part of every period, that begins at a time of its own."""

    model_config = ConfigDict(extra="forbid")

    period: Seconds = Field(86400.0, gt=0, description="After which it begins again.")
    online: float = Field(1.0, gt=0, le=1, description="Share of the period in which a client is online.")


class ClientFault(BaseModel):
    """Something that a client does in one round: it dies, its links stall, or the experts that it sends are garbage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["killed", "stalls", "garbage"] = Field(description="What happens.")
    client: int = Field(ge=0, description="To which client.")
    round: int = Field(ge=0, description="In which round, from 0.")
    at: Seconds = Field(0.0, description="When, from the start of the round.")


class Params(BaseModel):
    """A federated training job."""

    model_config = ConfigDict(extra="forbid")

    model: Model = Field(default_factory=lambda: Model.model_validate({}), description="What clients train.")
    samples: int = Field(500, ge=1, le=1 << 24, description="Samples of a client, in the middle.")
    spread: float = Field(0.0, ge=0, le=3, description="Standard deviation of the logarithm of a client's samples.")
    batch: int = Field(32, ge=1, le=1 << 20, description="Samples of a training step.")
    local_epochs: int = Field(1, ge=1, le=1000, description="Passes over a client's samples in a round.")
    dense: bool = Field(
        False,
        description="Every expert computes every sample and the gate picks, which is fast for few small experts on a CPU; "
        "default: only those that the gate chose.",
    )
    optimizer: Literal["sgd", "sgd_momentum", "adamw"] = Field("sgd_momentum", description="What clients train with.")
    rounds: int = Field(1, ge=1, le=100_000, description="Rounds; a plan is one of them, `windtunnel run` repeats it.")
    clients_per_round: int | None = Field(None, ge=1, description="Drawn in each round; default: all that are online.")
    domains: int = Field(
        4, ge=1, le=1 << 16, description="Kinds of data; clients of one kind have gates that are alike."
    )
    gate_noise: float = Field(
        0.3, ge=0, le=100, description="How far gates of one domain lie apart; 1: as far as domains."
    )
    gates: str | None = Field(
        None, description="Path of a .npy file with gate vectors (clients, experts, width) instead of drawn ones."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of a round's clients that leave while they train.")
    availability: Availability | None = Field(None, description="When clients are online; default: always.")
    faults: list[ClientFault] = Field(default_factory=list, max_length=10_000, description="What single clients do.")


@dataclass(frozen=True, kw_only=True)
class FederatedMoE:
    """The workload. All draws follow from `seed` and the round's number, so that they do not depend on what strategies do."""

    shape: MoEShape
    params: Params
    given_gates: NDArray[np.floating] | None
    seed: int

    @cached_property
    def rounds(self) -> int:
        return self.params.rounds

    def rng(self, what: int, number: int = 0) -> np.random.Generator:
        """Random numbers of one purpose and round."""
        return np.random.default_rng([self.seed, what, number])

    def samples(self, clients: int) -> Ints:
        """(clients,) samples of each: lognormal around the middle."""
        drawn = self.rng(SAMPLES).standard_normal(clients)
        found: Ints = np.maximum(np.rint(self.params.samples * np.exp(self.params.spread * drawn)), 1).astype(np.int64)
        return found

    def steps(self, clients: int) -> Ints:
        """(clients,) training steps of each in a round."""
        batches: Ints = -(-self.samples(clients) // self.params.batch)
        return batches * self.params.local_epochs

    def gates(self, clients: int, number: int) -> NDArray[np.floating]:
        """(clients, experts, width) gate vectors after training in round `number`.

        Drawn ones are an assumption, not a result of training: each expert of a domain has a direction, clients hold them in an
        order of their own and with noise of `gate_noise`, anew in each round. Raises `ScenarioError` for a file with fewer clients.
        """
        if self.given_gates is not None:
            if len(self.given_gates) < clients:
                problem = Problem("workload.gates", f"{len(self.given_gates)} clients", f"at least {clients}")
                raise ScenarioError("gate vectors are missing", [problem])
            return self.given_gates[:clients]
        rng = self.rng(GATES, number)
        centres, domain, order = self._kinds(clients)
        noise = rng.standard_normal((clients, *centres.shape[1:]), dtype=np.float32)
        return np.asarray(centres[domain[:, None], order] + self.params.gate_noise * noise)

    def domain_of(self, clients: int) -> Ints:
        """(clients,) the kind of data of each, where gates are drawn."""
        return self._kinds(clients)[1]

    def _kinds(self, clients: int) -> tuple[Floats, Ints, Ints]:
        """(domains, experts, width) directions, (clients,) domains, (clients, experts) the order in which a client holds them."""
        rng, size = self.rng(DOMAINS), (self.shape.experts, self.shape.width)
        centres = rng.standard_normal((self.params.domains, *size))
        domain = rng.integers(0, self.params.domains, clients)
        return centres, domain, rng.permuted(np.tile(np.arange(size[0]), (clients, 1)), axis=1)

    def chosen(self, clients: int, number: int, now_s: float) -> Ints:
        """Clients that are asked to take part in round `number`, ascending: online at `now_s`, and drawn where not all are."""
        online = np.flatnonzero(self.online_for_s(clients, now_s) > 0)
        count = self.params.clients_per_round
        if count is None or count >= len(online):
            return online
        return np.sort(self.rng(CHOICE, number).choice(online, count, replace=False))

    def online_for_s(self, clients: int, now_s: float) -> Floats:
        """(clients,) for how long each stays online from `now_s` on; 0: it is not."""
        when = self.params.availability
        if when is None:
            return np.full(clients, np.inf)
        phase = (now_s / when.period + self.rng(ONLINE).random(clients)) % 1.0
        return np.maximum(when.online - phase, 0.0) * when.period if when.online < 1 else np.full(clients, np.inf)

    def leaves_after(self, chosen: Ints, number: int) -> Floats:
        """(chosen,) the share of its training after which a client leaves, inf for those that stay."""
        rng = self.rng(DROPOUT, number)
        leaves = rng.random(len(chosen)) < self.params.dropout
        return np.where(leaves, rng.random(len(chosen)), np.inf)

    def described(self, clients: Ints, of: int) -> dict[str, Any]:
        """What reports and the real backend need to know, of a round of `clients` of `of`."""
        from simcore.federated.moe_model import step_flops

        samples = int(self.samples(of)[clients].sum()) * self.params.local_epochs
        per_step = step_flops(self.shape, self.params.batch, dense=self.params.dense)
        return {
            "name": "federated_moe",
            "iterations": self.rounds,
            "seed": self.seed,
            "precision": self.shape.dtype,
            "samples_per_iteration": samples,
            "flops_per_iteration": per_step * int(self.steps(of)[clients].sum()),
            "model": {name: getattr(self.shape, name) for name in self.shape.__slots__},
            "batch": self.params.batch,
            "local_epochs": self.params.local_epochs,
            "dense": self.params.dense,
            "optimizer": self.params.optimizer,
        }


def build(params: Params, rng: np.random.Generator, base_dir: Path) -> FederatedMoE:
    """The workload; paths are relative to `base_dir`. Raises `ScenarioError` for gates that cannot be read or have other sizes."""
    model = params.model
    shape = MoEShape(
        image=model.image,
        channels=tuple(model.channels),
        width=model.width,
        experts=model.experts,
        hidden=model.hidden,
        top_k=model.top_k,
        classes=model.classes,
    )
    given = _gates(base_dir / params.gates, shape) if params.gates is not None else None
    return FederatedMoE(shape=shape, params=params, given_gates=given, seed=int(rng.integers(2**31)))


def _gates(path: Path, shape: MoEShape) -> NDArray[np.floating]:
    wanted = f"numbers of shape (clients, {shape.experts}, {shape.width})"
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ScenarioError(
            f"{path} cannot be read", [Problem("gates", str(error)[:200], f"a .npy file: {wanted}")]
        ) from error
    if not isinstance(found, np.ndarray) or found.ndim != 3 or found.shape[1:] != (shape.experts, shape.width):
        given = f"shape {found.shape}" if isinstance(found, np.ndarray) else "several arrays"
        raise ScenarioError(f"{path} does not suit the model", [Problem("gates", given, wanted)])
    if not np.issubdtype(found.dtype, np.floating):
        raise ScenarioError(f"{path} holds no numbers", [Problem("gates", str(found.dtype), wanted)])
    return found
