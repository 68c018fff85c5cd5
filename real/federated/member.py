"""A client's part of a round: train, offer what others may fetch, mix what came. Its own model is on its disk at any time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from costmodels.files import write_atomically
from real.federated.local import State, Training, accuracy, train
from real.federated.model import MixtureOfExperts, part_of
from real.federated.orders import SHARE, Orders, expert_item
from real.federated.parcels import Layout, Tensors, layout_of
from real.federated.partition import ClientData
from simcore.errors import InputError, Problem
from simcore.federated.moe_model import MoEShape
from simcore.federated.rounds import Strategy

OWN, TRAINED = "own.safetensors", "trained.safetensors"
"""A client's model now, and as it was after training in the last round: what peers get of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of a client's training; `accuracy` on its own tests."""

    state: State
    samples: int
    loss: float
    accuracy: float


def initial(shape: MoEShape, seed: int) -> State:
    """The weights that all start from."""
    torch.manual_seed(seed)
    return {name: value.detach().clone() for name, value in MixtureOfExperts(shape).named_parameters()}


class Member:
    """Client `number` with its data, and its model in `folder`, where it is made from `seed` unless it is there."""

    def __init__(self, number: int, shape: MoEShape, data: ClientData, how: Training, seed: int, folder: Path) -> None:
        self.number, self.shape, self.data, self.how, self.seed, self.folder = number, shape, data, how, seed, folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / OWN).is_file():
            keep(folder / OWN, initial(shape, seed), -1)
        self.state, _ = kept(folder / OWN)

    def train(self, number: int, shared: Mapping[str, Tensor], strategy: Strategy) -> Trained:
        """Round `number` of training, from the own model with what the server averaged."""
        model = MixtureOfExperts(self.shape)
        model.load_state_dict({**self.state, **shared})
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number * 1009 + self.number)
        towards = shared if strategy.proximal else None
        loss = train(model, self.data.train, self.how, generator, proximal=strategy.proximal, towards=towards)
        self.state = {n: p.detach().clone() for n, p in model.named_parameters()}
        keep(self.folder / TRAINED, self.state, number)
        keep(self.folder / OWN, self.state, number)
        return Trained(
            state=self.state,
            samples=len(self.data.train.classes),
            loss=loss,
            accuracy=accuracy(model, self.data.test),
        )

    def mix(self, orders: Orders, came: Mapping[int, Mapping[str, Tensors]]) -> None:
        """What the orders say, of what came from each peer; the others are left out, and weights of the rest scaled to sum to 1."""
        self.state, number = kept(self.folder / TRAINED)
        if number != orders.number:
            raise InputError(
                "orders of another round",
                [Problem("number", str(orders.number), f"{number}, in which client {self.number} trained last")],
            )
        if orders.share:
            self._average(orders, came)
        elif orders.mixture:
            self._mix(orders, came)
        keep(self.folder / OWN, self.state, number)

    def tested(self, shared: Mapping[str, Tensor]) -> float:
        """Accuracy of the own model, with what the server averaged, on its own tests."""
        model = MixtureOfExperts(self.shape)
        model.load_state_dict({**self.state, **shared})
        return accuracy(model, self.data.test)

    def _mix(self, orders: Orders, came: Mapping[int, Mapping[str, Tensors]]) -> None:
        """Equation (11) for the experts of this client."""
        left = [p for p in orders.mixture if p.client == self.number or expert_item(p.source) in came.get(p.client, {})]
        total = torch.zeros(self.shape.experts, dtype=torch.float64)
        total.index_add_(
            0, torch.tensor([p.expert for p in left]), torch.tensor([p.weight for p in left], dtype=torch.float64)
        )
        if len(left) == len(orders.mixture):
            total.fill_(1.0)
        trained, mixed = self.state, dict(self.state)
        for name in [n for n in trained if part_of(n) == "experts"]:
            made = torch.zeros_like(trained[name])
            for p in left:
                got = (
                    trained[name][p.source] if p.client == self.number else came[p.client][expert_item(p.source)][name]
                )
                made[p.expert] += float(p.weight / total[p.expert]) * got
            mixed[name] = made
        self.state = mixed

    def _average(self, orders: Orders, came: Mapping[int, Mapping[str, Tensors]]) -> None:
        """The mean of the own model and those that came, of the share of numbers that are sent."""
        there = [came[c][SHARE] for c in sorted(orders.fetch) if c in came]
        for name, mask in share_of(self.state, orders.share, self.seed, orders.number).items():
            own = self.state[name]
            mean = torch.stack([own[mask], *(one[name] for one in there)]).mean(dim=0)
            self.state[name] = own.masked_scatter(mask, mean)


def offered(state: State, orders: Orders, seed: int) -> dict[str, Tensors]:
    """All that peers may fetch in this round, by item."""
    wanted = {item for items in orders.serve.values() for item in items}
    if orders.share:
        masks = share_of(state, orders.share, seed, orders.number)
        return {SHARE: {name: state[name][mask] for name, mask in masks.items()}} if SHARE in wanted else {}
    experts = {n: v for n, v in state.items() if part_of(n) == "experts"}
    count = len(next(iter(experts.values())))
    return {expert_item(e): {n: v[e] for n, v in experts.items()} for e in range(count) if expert_item(e) in wanted}


def wanted(state: State, orders: Orders, seed: int) -> dict[int, dict[str, Layout]]:
    """Types and shapes of what is to be fetched, by peer and item; all clients' models are of one shape, so the own one tells."""
    if orders.share:
        masks = share_of(state, orders.share, seed, orders.number)
        one: Layout = layout_of({name: state[name][mask] for name, mask in masks.items()})
    else:
        one = layout_of({n: v[0] for n, v in state.items() if part_of(n) == "experts"})
    return {peer: dict.fromkeys(items, one) for peer, items in orders.fetch.items()}


def share_of(state: State, share: float, seed: int, number: int) -> dict[str, Tensor]:
    """Which numbers of each parameter are sent in a round of gossip: the same for all clients."""
    chosen = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return {n: torch.rand(v.shape, generator=chosen) < share for n, v in state.items()}


def keep(path: Path, state: State, number: int) -> None:
    """Write a model of round `number`, whole or not at all."""
    write_atomically(path, save(state, metadata={"round": str(number), "order": json.dumps(list(state))}))
    path.chmod(0o600)


def kept(path: Path) -> tuple[State, int]:
    """A model, its parameters in the order in which they were, and its round."""
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
        return {name: file.get_tensor(name) for name in json.loads(said["order"])}, int(said["round"])
