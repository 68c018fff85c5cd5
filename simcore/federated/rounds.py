"""What is decided for one round of federated learning: one noun for the simulator, the engine's plans and real training."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simcore.federated.aggregation import Mixing
from simcore.federated.exchange import Flows

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

System = Literal["fedmoe_da", "fedavg", "fedprox", "expert_averaging", "local_only", "gossip", "saps"]
Part = Literal["embedding", "gate", "experts"]

AVERAGED: dict[System, tuple[Part, ...]] = {
    "fedmoe_da": ("embedding",),
    "fedavg": ("embedding", "gate", "experts"),
    "fedprox": ("embedding", "gate", "experts"),
    "expert_averaging": ("embedding", "experts"),
    "local_only": (),
    "gossip": (),
    "saps": (),
}
"""Parts that a server averages over clients. In FedMoE-DA gates stay personal unless `average_gates` says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How rounds are decided.

    fedmoe_da: `P` experts asked for besides the own one, softmax temperature `tau`, a matrix computed anew every `every` rounds;
    `relays` lets those who have an expert hand it on, `price` trades cosine for seconds (0: not at all). gossip, saps: `neighbours`
    partners, `share` of the model that each sends. fedprox: weight `proximal` of the distance to the server's model.
    """

    system: System
    P: int = 5
    tau: float = 1.0
    every: int = 1
    average_gates: bool = False
    relays: bool = False
    price: float = 0.0
    neighbours: int = 1
    share: float = 1.0
    proximal: float = 0.0

    @property
    def averaged(self) -> tuple[Part, ...]:
        """Parts that the server averages."""
        return (*AVERAGED[self.system], "gate") if self.average_gates else AVERAGED[self.system]

    @property
    def has_server(self) -> bool:
        return bool(AVERAGED[self.system])

    def refreshes(self, number: int) -> bool:
        """Whether the aggregation matrix is computed anew in round `number`."""
        return self.system == "fedmoe_da" and number % self.every == 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Round:
    """One round; arrays are by client unless they say otherwise.

    `there` (clients,) says whose training counts. Before training a client gets `down_B` from the server, after it sends `up_B`.
    Then the server sends `list_B` of what to fetch from whom, and `flows` go between clients, of which the second of each pair in
    `after` (pairs, 2) waits for the first. `mixing` is what experts are made of with those that are there, `basis` the same as last
    computed, for rounds to come; both None for other systems. `copied` (experts,) counts how often each expert is sent.
    """

    number: int
    there: Bools
    up_B: Ints
    down_B: Ints
    list_B: Ints
    flows: Flows
    after: Ints
    averaged: tuple[Part, ...]
    refreshed: bool = False
    mixing: Mixing | None = None
    basis: Mixing | None = None
    copied: Ints | None = None
    share: float = 0.0

    @property
    def clients(self) -> int:
        return len(self.there)

    @property
    def server_B(self) -> int:
        """Through the server, both ways."""
        return int(self.up_B.sum() + self.down_B.sum() + self.list_B.sum())

    @property
    def peer_B(self) -> int:
        """Among clients."""
        return int(self.flows.nbytes.sum())
