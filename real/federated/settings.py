"""What a Flower run is told (`flwr run -c "rounds=3 data='digits'"`): strategy, model, data, and for whom a round waits."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from real.federated.characters import ALPHABET, CONTEXT, characters
from real.federated.datasets import mnist, small_digits
from real.federated.local import Training
from real.federated.partition import ClientData, dirichlet, split
from simcore.errors import InputError, Problem
from simcore.federated.moe_model import MoEShape
from simcore.federated.rounds import Strategy, System

SIZES: dict[str, tuple[tuple[int, int, int], tuple[int, ...], int]] = {
    "mnist": ((1, 28, 28), (8, 16, 16), 10),
    "digits": ((1, 8, 8), (8, 16), 10),
    "characters": ((len(ALPHABET), 1, CONTEXT), (), len(ALPHABET)),
}
"""Of each kind of data: channels, height and width of a sample, filters of the embedding network, classes."""


class Settings(BaseModel):
    """The keys of a run's configuration; in its file they have hyphens."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-"))

    system: System = Field("fedmoe_da", description="Strategy.")
    P: int = Field(5, ge=0, description="FedMoE-DA: experts asked for besides an expert's own.")
    tau: float = Field(1.0, gt=0, description="FedMoE-DA: temperature.")
    every: int = Field(1, ge=1, description="FedMoE-DA: rounds after which the matrix is computed anew.")
    average_gates: bool = Field(False, description="FedMoE-DA: gates go through the server, too.")
    neighbours: int = Field(1, ge=1, description="Gossip: partners in a round.")
    share: float = Field(1.0, gt=0, le=1, description="Gossip: part of the model that is sent.")
    proximal: float = Field(0.01, ge=0, description="FedProx: weight of the distance to the server's model.")
    clients: int = Field(6, ge=1, description="Clients; the run begins when so many are there.")
    rounds: int = Field(3, ge=1, description="Rounds.")
    seed: int = Field(0, ge=0, description="Of the first weights, the data's parts and the order of samples.")
    data: Literal["mnist", "digits", "characters"] = Field(
        "mnist", description="5,000 digits of 28 x 28, 1,797 of 8 x 8 pixels, or text, of another kind for each client."
    )
    alpha: float = Field(0.5, gt=0, description="Dirichlet parameter of digits' parts; small: few classes each.")
    epochs: int = Field(2, ge=1, description="Passes over a client's samples in a round.")
    batch: int = Field(32, ge=1, description="Samples of a step.")
    rate: float = Field(0.05, gt=0, description="Learning rate.")
    width: int = Field(64, ge=1, description="Features of a sample.")
    experts: int = Field(8, ge=1, description="Experts of a client.")
    hidden: int = Field(128, ge=1, description="Width of an expert's hidden layer.")
    top_k: int = Field(2, ge=1, description="Experts that a sample visits.")
    folder: str = Field(
        "out/federated",
        description="For models and rounds.json; an absolute path, as Flower's processes run elsewhere.",
    )
    quorum: float = Field(1.0, gt=0, le=1, description="Share of clients after whose answers the server goes on.")
    deadline: float = Field(600.0, gt=0, description="Seconds that the server waits for answers at most.")
    peer_timeout: float = Field(60.0, gt=0, description="Seconds that clients wait for each other at most.")

    @model_validator(mode="after")
    def _routes(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError("`top-k` is at most `experts`")
        return self

    @classmethod
    def of(cls, config: Mapping[str, object]) -> "Settings":
        """Raises `InputError` with all that is wrong."""
        try:
            return cls.model_validate(dict(config))
        except ValidationError as error:
            raise InputError(
                "a run cannot be configured like this",
                [Problem(".".join(map(str, e["loc"])), repr(e["input"])[:80], e["msg"]) for e in error.errors()],
            ) from error

    @cached_property
    def shape(self) -> MoEShape:
        image, channels, classes = SIZES[self.data]
        return MoEShape(
            image=image,
            channels=channels,
            width=self.width,
            experts=self.experts,
            hidden=self.hidden,
            top_k=self.top_k,
            classes=classes,
        )

    @cached_property
    def strategy(self) -> Strategy:
        proximal = self.proximal if self.system == "fedprox" else 0.0
        return Strategy(
            system=self.system,
            P=self.P,
            tau=self.tau,
            every=self.every,
            average_gates=self.average_gates and self.system == "fedmoe_da",
            neighbours=self.neighbours,
            share=self.share,
            proximal=proximal,
        )

    @property
    def training(self) -> Training:
        return Training(epochs=self.epochs, batch=self.batch, rate=self.rate)

    @property
    def root(self) -> Path:
        return Path(self.folder)

    def parts(self) -> list[ClientData]:
        """The data of each client, the same wherever it is called."""
        rng = np.random.default_rng(self.seed)
        if self.data == "characters":
            return characters(self.clients, rng)
        images = mnist() if self.data == "mnist" else small_digits()
        return split(images, dirichlet(images.classes.numpy(), self.clients, self.alpha, rng), rng)
