"""Who fetches which expert from whom, and the bytes of a round: by client, by link, by expert, and in closed form."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcore.federated.aggregation import Mixing

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ENTRY_B = 12
"""One entry of the list that a client gets: peer, expert and weight, four bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """Bytes of a client's model: the embedding network that all share, the gate, and each of `experts` experts."""

    embedding_B: int
    gate_B: int
    expert_B: int
    experts: int

    @property
    def shared_B(self) -> int:
        """What goes through the server in FedMoE-DA."""
        return self.embedding_B + self.gate_B

    @property
    def model_B(self) -> int:
        return self.shared_B + self.experts * self.expert_B


class Fetches(NamedTuple):
    """(fetches,) each: `target` is the client that fetches `expert` from the client `source`; no pair (target, expert) twice."""

    target: Ints
    source: Ints
    expert: Ints


class Flows(NamedTuple):
    """(flows,) each: what a client sends to another in a round, in one go. Ordered by target, then source."""

    target: Ints
    source: Ints
    nbytes: Ints


def fetches(mixing: Mixing) -> Fetches:
    """Every expert of another client that one of a client's own is made of, once for each client, ordered by target and expert."""
    target = mixing.row // mixing.experts
    away = target != mixing.source // mixing.experts
    code = np.unique(target[away] * mixing.rows + mixing.source[away])
    expert = code % mixing.rows
    return Fetches(target=code // mixing.rows, source=expert // mixing.experts, expert=expert)


def merged(found: Fetches, expert_B: int, clients: int) -> Flows:
    """One flow for each pair of clients."""
    code, count = np.unique(found.target * clients + found.source, return_counts=True)
    return Flows(target=code // clients, source=code % clients, nbytes=count * expert_B)


def list_B(mixing: Mixing) -> Ints:
    """(clients,) bytes of the list of peers, experts and weights that the server hands to each client."""
    entries: Ints = np.diff(mixing.ptr).reshape(-1, mixing.experts).sum(axis=1)
    return entries * ENTRY_B


def received_B(flows: Flows, clients: int) -> Ints:
    """(clients,) bytes that each gets from peers."""
    return _sums(flows.target, flows.nbytes, clients)


def sent_B(flows: Flows, clients: int) -> Ints:
    """(clients,) bytes that each sends to peers."""
    return _sums(flows.source, flows.nbytes, clients)


def copies(found: Fetches, rows: int) -> Ints:
    """(experts of all clients,) how often each is fetched; times its bytes, the bytes of each expert."""
    return np.bincount(found.expert, minlength=rows)


def closed_form_B(mixing: Mixing, parts: ModelParts) -> int:
    """Bytes among peers: for each client the number of different experts of others in its rows, times an expert's bytes.

    At most clients * experts * P * expert_B where no cosines tie.
    """
    total = 0
    for client in range(mixing.clients):
        own = range(client * mixing.experts, (client + 1) * mixing.experts)
        needed = {int(s) for i in own for s in mixing.of(i)[0]}
        total += len(needed.difference(own))
    return total * parts.expert_B


def _sums(client: Ints, nbytes: Ints, clients: int) -> Ints:
    return np.bincount(client, nbytes.astype(np.float64), minlength=clients).astype(np.int64)
