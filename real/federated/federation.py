"""Rounds of federated training in one process that do exactly what the planner decides.

`simcore.federated.strategies.decide` says what is averaged, who sends what to whom, and of what each expert is made; here
parameters follow. Bytes are those of the decided round.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from real.federated.local import State, Training, accuracy, train
from real.federated.model import MixtureOfExperts, part_of
from real.federated.partition import ClientData
from simcore.federated.aggregation import Mixing
from simcore.federated.moe_model import MoEShape
from simcore.federated.rounds import Round, Strategy
from simcore.federated.strategies import Access, decide


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One round: mean accuracy over clients, each on its own tests: with what the round made, and after training at its end."""

    number: int
    trained: float
    aggregated: float
    loss: float
    server_B: int
    peer_B: int


class LocalFederation:
    """Clients with their models and data. All start from the same weights, that follow from `seed`."""

    def __init__(
        self,
        shape: MoEShape,
        data: Sequence[ClientData],
        strategy: Strategy,
        how: Training,
        seed: int,
        access: Access | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.model = MixtureOfExperts(shape)
        start = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.states: list[State] = [{n: v.clone() for n, v in start.items()} for _ in data]
        self.server: State = {n: v for n, v in start.items() if part_of(n) in strategy.averaged}
        self.shape, self.data, self.strategy, self.how, self.seed = shape, data, strategy, how, seed
        self.access = access or Access.equal(len(data))
        self.basis: Mixing | None = None
        self.number = 0

    def round(self, there: np.ndarray | None = None) -> Measured:
        """One round of the clients that are `there` (clients,), by default all."""
        who = np.ones(len(self.data), dtype=bool) if there is None else there
        losses, trained = [], []
        for c in np.flatnonzero(who).tolist():
            self.states[c].update({n: v.clone() for n, v in self.server.items()})
            losses.append(self._train(c))
            trained.append(accuracy(self.model, self.data[c].test))
        gates = np.stack([state["gate.weight"].numpy() for state in self.states])
        decided = decide(
            self.strategy,
            self.shape.parts,
            self.number,
            who,
            self.access,
            np.random.default_rng([self.seed, self.number]),
            gates=gates,
            basis=self.basis,
        )
        self.basis = decided.basis
        self.apply(decided)
        self.number += 1
        return Measured(
            number=decided.number,
            trained=float(np.mean(trained)),
            aggregated=self.tested(who),
            loss=float(np.mean(losses)),
            server_B=decided.server_B,
            peer_B=decided.peer_B,
        )

    def tested(self, there: np.ndarray) -> float:
        """Mean accuracy of the clients that are there, each with its own model on its own tests."""
        found = []
        for c in np.flatnonzero(there).tolist():
            self._load({**self.states[c], **self.server})
            found.append(accuracy(self.model, self.data[c].test))
        return float(np.mean(found))

    def apply(self, decided: Round) -> None:
        """What the server averages, what experts are mixed of, what gossip averages."""
        self._average(decided)
        if decided.mixing is not None:
            mix(self.states, decided.mixing)
        if decided.share:
            self._gossip(decided)

    def _train(self, client: int) -> float:
        self._load(self.states[client])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.number * 1009 + client)
        towards = self.server if self.strategy.proximal else None
        data = self.data[client].train
        loss = train(self.model, data, self.how, generator, proximal=self.strategy.proximal, towards=towards)
        self.states[client] = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        return loss

    def _load(self, state: State) -> None:
        self.model.load_state_dict(state)

    def _average(self, decided: Round) -> None:
        """Means over clients, weighted by their samples (McMahan et al. 2017)."""
        there = np.flatnonzero(decided.there).tolist()
        weights = torch.tensor([float(len(self.data[c].train.classes)) for c in there])
        weights = weights / weights.sum()
        for name in self.server if there else ():
            stacked = torch.stack([self.states[c][name] for c in there])
            self.server[name] = torch.tensordot(weights, stacked, dims=1)

    def _gossip(self, decided: Round) -> None:
        """Everybody takes the mean of its own model and those that it gets, of the share of numbers that are sent."""
        sent = [{n: v.clone() for n, v in state.items()} for state in self.states]
        chosen = torch.Generator().manual_seed(self.seed * 1_000_003 + decided.number)
        masks = {n: torch.rand(v.shape, generator=chosen) < decided.share for n, v in sent[0].items()}
        for client in np.unique(decided.flows.target).tolist():
            peers = decided.flows.source[decided.flows.target == client].tolist()
            for name, mask in masks.items():
                mean = torch.stack([sent[c][name] for c in (client, *peers)]).mean(dim=0)
                self.states[client][name] = torch.where(mask, mean, sent[client][name])


def mix(states: Sequence[State], mixing: Mixing) -> None:
    """Equation (11) for the experts of all clients, in place."""
    row, source = torch.from_numpy(mixing.row), torch.from_numpy(mixing.source)
    weight = torch.from_numpy(mixing.weight).float()
    for name in [n for n in states[0] if part_of(n) == "experts"]:
        stacked = torch.stack([state[name] for state in states])
        flat = stacked.flatten(0, 1).flatten(1)
        mixed = torch.zeros_like(flat).index_add_(0, row, weight[:, None] * flat[source]).view(stacked.shape)
        for state, own in zip(states, mixed, strict=True):
            state[name] = own.clone()
