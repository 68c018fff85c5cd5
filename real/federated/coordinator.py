"""The server's part of a round: what it averages, and what it decides from the gates of those who answered."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from real.federated.local import State
from real.federated.member import initial
from real.federated.model import part_of
from simcore.federated.aggregation import Mixing
from simcore.federated.moe_model import MoEShape
from simcore.federated.rounds import Round, Strategy
from simcore.federated.strategies import Access, decide

GATE = "gate.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client sends after training: what is averaged, and its gate when the matrix is computed anew."""

    state: State
    samples: int


def sent(strategy: Strategy, state: State, number: int) -> State:
    """The part of a client's `state` that goes to the server in round `number`."""
    gate = strategy.refreshes(number)
    return {n: v for n, v in state.items() if part_of(n) in strategy.averaged or (gate and n == GATE)}


class Coordinator:
    """A server of `clients` clients, and what it has come to. `shared` is what it averages, which all get before they train."""

    def __init__(
        self, shape: MoEShape, strategy: Strategy, clients: int, seed: int, access: Access | None = None
    ) -> None:
        self.shape, self.strategy, self.clients, self.seed = shape, strategy, clients, seed
        self.access = access or Access.equal(clients)
        self.start = initial(shape, seed)
        self.shared: State = {n: v for n, v in self.start.items() if part_of(n) in strategy.averaged}
        self.basis: Mixing | None = None
        self.number = 0

    def expected(self) -> State:
        """Names, types and shapes of an answer in this round."""
        return sent(self.strategy, self.start, self.number)

    def decide(self, answers: Mapping[int, Answer]) -> Round:
        """Average what came from clients, by number, and decide who fetches what from whom."""
        there = np.zeros(self.clients, dtype=bool)
        there[list(answers)] = True
        self._average(answers)
        gates = None
        if self.strategy.refreshes(self.number):
            gates = np.zeros((self.clients, self.shape.experts, self.shape.width), dtype=np.float32)
            for client, answer in answers.items():
                gates[client] = answer.state[GATE].numpy()
        decided = decide(
            self.strategy,
            self.shape.parts,
            self.number,
            there,
            self.access,
            np.random.default_rng([self.seed, self.number]),
            gates=gates,
            basis=self.basis,
        )
        self.basis = decided.basis
        self.number += 1
        return decided

    def _average(self, answers: Mapping[int, Answer]) -> None:
        """Means over clients, weighted by their samples (McMahan et al. 2017)."""
        if not answers:
            return
        clients = sorted(answers)
        weights = torch.tensor([float(answers[c].samples) for c in clients])
        weights = weights / weights.sum()
        for name in self.shared:
            self.shared[name] = torch.tensordot(weights, torch.stack([answers[c].state[name] for c in clients]), dims=1)
