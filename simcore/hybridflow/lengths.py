"""Lengths of prompts and responses, drawn from the scenario's seed: fixed, lognormal with a long tail, or those observed."""

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Ints = NDArray[np.int64]
MOST = 1 << 20


class Lognormal(BaseModel):
    """A long tail: the logarithm of a length is normal; what is longer than `longest` is cut off there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    distribution: Literal["lognormal"] = Field("lognormal", description="Lengths whose logarithms are normal.")
    mean: float = Field(gt=0, le=MOST, description="Mean of the lengths before the longest are cut, in tokens.")
    sigma: float = Field(ge=0, le=4, description="Standard deviation of the logarithm; 0.5 is mild, 1 a long tail.")
    longest: int = Field(ge=1, le=MOST, description="Most tokens: where generation stops.")
    shortest: int = Field(1, ge=1, le=MOST, description="Fewest tokens.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.shortest > self.longest:
            raise ValueError("`shortest` must not be above `longest`")
        return self

    def draw(self, n: int, rng: np.random.Generator) -> Ints:
        location = np.log(self.mean) - self.sigma**2 / 2
        drawn = np.rint(rng.lognormal(location, self.sigma, n))
        return np.clip(drawn, self.shortest, self.longest).astype(np.int64)


class Empirical(BaseModel):
    """Lengths as observed, each as likely as any other of the list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    distribution: Literal["empirical"] = Field("empirical", description="Lengths drawn from those given.")
    lengths: list[Annotated[int, Field(ge=1, le=MOST)]] = Field(
        min_length=1, max_length=1_000_000, description="Observed lengths in tokens."
    )

    def draw(self, n: int, rng: np.random.Generator) -> Ints:
        return rng.choice(np.array(self.lengths, dtype=np.int64), n)


Lengths = Annotated[int, Field(ge=1, le=MOST)] | Lognormal | Empirical
"""A number is the length of all."""


def draw(lengths: int | Lognormal | Empirical, n: int, rng: np.random.Generator) -> Ints:
    """(n,) lengths in tokens."""
    return np.full(n, lengths, dtype=np.int64) if isinstance(lengths, int) else lengths.draw(n, rng)
