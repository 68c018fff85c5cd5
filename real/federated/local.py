"""What a client does by itself: train for some epochs, and test."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from real.federated.datasets import Images
from real.federated.model import MixtureOfExperts

State = dict[str, Tensor]
"""Parameters by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How clients train: stochastic gradient descent; `balance` weighs the load-balancing loss."""

    epochs: int = 2
    batch: int = 32
    rate: float = 0.05
    momentum: float = 0.9
    balance: float = 0.01


def train(
    model: MixtureOfExperts,
    data: Images,
    how: Training,
    generator: torch.Generator,
    *,
    proximal: float = 0.0,
    towards: Mapping[str, Tensor] | None = None,
) -> float:
    """Train `model` in place; returns the mean loss of its last epoch.

    With `proximal` half the squared distance to the parameters `towards` is added to the loss, times `proximal` (FedProx).
    """
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=how.rate, momentum=how.momentum)
    named = dict(model.named_parameters())
    losses: list[float] = []
    for _ in range(how.epochs):
        losses = []
        for rows in torch.randperm(len(data.classes), generator=generator).split(how.batch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(data.pixels[rows]), data.classes[rows]) + how.balance * model.balance
            if proximal and towards:
                loss = loss + proximal / 2 * sum(((named[k] - v) ** 2).sum() for k, v in towards.items())
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return sum(losses) / max(len(losses), 1)


def accuracy(model: MixtureOfExperts, data: Images) -> float:
    """Share of `data` that is classified right."""
    model.eval()
    with torch.no_grad():
        return float((model(data.pixels).argmax(1) == data.classes).float().mean())
