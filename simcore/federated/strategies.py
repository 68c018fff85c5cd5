"""How each strategy decides a round from who is there, the gates of those, and what their links carry."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simcore.federated.aggregation import Mixing, domain_aware, identity, restricted
from simcore.federated.exchange import Flows, ModelParts, copies, fetches, list_B, merged
from simcore.federated.matching import matched_pairs, random_pairs
from simcore.federated.relays import owners_s, relayed
from simcore.federated.rounds import Round, Strategy
from simcore.federated.trading import traded

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NO_FLOWS = Flows(*(np.empty(0, dtype=np.int64) for _ in range(3)))
NO_PAIRS = np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Access:
    """What the server knows of links: bytes per second up and down, latency to the server, and the region, of each client."""

    up_B_per_s: Floats
    down_B_per_s: Floats
    latency_s: Floats
    region: Ints

    @classmethod
    def equal(cls, clients: int, B_per_s: float = 1.0) -> "Access":
        """Links that are all alike, for training where there are none."""
        rate = np.full(clients, B_per_s)
        return cls(
            up_B_per_s=rate,
            down_B_per_s=rate,
            latency_s=np.zeros(clients),
            region=np.zeros(clients, dtype=np.int64),
        )


def upload_B(strategy: Strategy, parts: ModelParts, number: int) -> int:
    """What each client sends to the server in round `number`: what is averaged, and its gate when the matrix is computed anew."""
    gate = "gate" in strategy.averaged or strategy.refreshes(number)
    return _averaged_B(strategy, parts) + (parts.gate_B if gate and "gate" not in strategy.averaged else 0)


def download_B(strategy: Strategy, parts: ModelParts) -> int:
    """What each client gets from the server before it trains."""
    return _averaged_B(strategy, parts)


def _averaged_B(strategy: Strategy, parts: ModelParts) -> int:
    size = {"embedding": parts.embedding_B, "gate": parts.gate_B, "experts": parts.experts * parts.expert_B}
    return sum(size[part] for part in strategy.averaged)


def decide(
    strategy: Strategy,
    parts: ModelParts,
    number: int,
    there: Bools,
    access: Access,
    rng: np.random.Generator,
    *,
    gates: NDArray[np.floating] | None = None,
    basis: Mixing | None = None,
) -> Round:
    """Round `number` of the clients that are `there` (clients,).

    `gates` (clients, experts, width) after training are needed in rounds that compute the matrix anew; those of absent clients are
    not read. `basis` is the matrix as last computed. Raises `InputError` for gates without a direction.
    """
    up = np.where(there, upload_B(strategy, parts, number), 0)
    down = np.where(there, download_B(strategy, parts), 0)
    if strategy.system == "fedmoe_da":
        return _exchange(strategy, parts, number, there, access, up, down, gates, basis)
    flows, share = NO_FLOWS, 0.0
    if strategy.system in ("gossip", "saps"):
        share = strategy.share
        flows = _gossip(strategy, parts, number, np.flatnonzero(there), access, rng)
    return Round(
        number=number,
        there=there,
        up_B=up,
        down_B=down,
        list_B=np.zeros_like(down),
        flows=flows,
        after=NO_PAIRS,
        averaged=strategy.averaged,
        share=share,
    )


def _gossip(
    strategy: Strategy, parts: ModelParts, number: int, clients: Ints, access: Access, rng: np.random.Generator
) -> Flows:
    """Both ways between the partners of a round; who is drawn together twice exchanges once."""
    rate = np.minimum(access.up_B_per_s, access.down_B_per_s)
    drawn = []
    for _ in range(strategy.neighbours):
        if strategy.system == "saps":
            drawn.append(matched_pairs(clients, rate, access.region, number, rng))
        else:
            drawn.append(random_pairs(clients, rng))
    pairs = np.concatenate([*drawn, *(p[:, ::-1] for p in drawn)])
    target, source = np.unique(pairs, axis=0).T
    return Flows(target, source, np.full(len(target), round(strategy.share * parts.model_B)))


def _exchange(
    strategy: Strategy,
    parts: ModelParts,
    number: int,
    there: Bools,
    access: Access,
    up: Ints,
    down: Ints,
    gates: NDArray[np.floating] | None,
    basis: Mixing | None,
) -> Round:
    """FedMoE-DA: the matrix, new or as it was, and the exchange that follows from it."""
    refreshed = strategy.refreshes(number) or basis is None
    listed = np.zeros_like(down)
    if refreshed:
        assert gates is not None, "a matrix needs gates"
        basis = _matrix(strategy, parts, there, access, gates)
        listed = np.where(there, list_B(basis), 0)
    assert basis is not None
    mixing = restricted(basis, there)
    asked = fetches(mixing)
    after = NO_PAIRS
    flows = merged(asked, parts.expert_B, len(there))
    if strategy.relays:
        rates = access.up_B_per_s, access.down_B_per_s
        found = relayed(asked, parts.expert_B, *rates, access.latency_s)
        if found.seconds < owners_s(asked, parts.expert_B, *rates):
            after = found.after
            flows = Flows(found.fetches.target, found.fetches.source, np.full(len(asked.target), parts.expert_B))
    return Round(
        number=number,
        there=there,
        up_B=up,
        down_B=down,
        list_B=listed,
        flows=flows,
        after=after,
        averaged=strategy.averaged,
        refreshed=refreshed,
        mixing=mixing,
        basis=basis,
        copied=copies(asked, mixing.rows),
    )


def _matrix(strategy: Strategy, parts: ModelParts, there: Bools, access: Access, gates: NDArray[np.floating]) -> Mixing:
    """Of the clients that are there; experts of others stay as they are."""
    if not there.any():
        return identity(len(there), parts.experts)
    present = np.flatnonzero(there)
    if strategy.price and strategy.P:
        found = traded(
            gates[present],
            strategy.P,
            strategy.tau,
            price=strategy.price,
            expert_B=parts.expert_B,
            up_B_per_s=access.up_B_per_s[present],
        )
    else:
        found = domain_aware(gates[present], strategy.P, strategy.tau)
    return _spread(found, present, len(there))


def _spread(mixing: Mixing, clients: Ints, of: int) -> Mixing:
    """A matrix of some `clients` as one of all `of` them."""
    e = mixing.experts
    number = (clients[:, None] * e + np.arange(e)).ravel()
    counts = np.ones(of * e, dtype=np.int64)
    counts[number] = np.diff(mixing.ptr)
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    source = np.repeat(np.arange(of * e), counts)
    weight, cosine = np.ones(len(source)), np.ones(len(source))
    inside = np.repeat(np.isin(np.arange(of * e), number), counts)
    source[inside], weight[inside], cosine[inside] = number[mixing.source], mixing.weight, mixing.cosine
    return Mixing(experts=e, ptr=ptr, source=source, weight=weight, cosine=cosine)
