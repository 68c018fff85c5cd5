"""How clients get at what their peers offer: over the network, or, where all are one program's, from each other's folders."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from real.federated.certificates import Identity
from real.federated.member import OWN, TRAINED, kept, offered, wanted
from real.federated.orders import Orders, client_name, client_of
from real.federated.parcels import Layout, Tensors
from real.federated.peers import Patience, Peer, PeerFailedError, fetch, fetch_all

Came = dict[int, dict[str, Tensors]]


class Exchange(Protocol):
    """Fetches what orders say."""

    def fetched(self, orders: Orders) -> tuple[Came, list[PeerFailedError]]:
        """What came, by client and item, and who failed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """gRPC with mutual TLS; `addresses` by client."""

    identity: Identity
    addresses: Mapping[int, str]
    folder: Path
    seed: int
    patience: Patience

    def fetched(self, orders: Orders) -> tuple[Came, list[PeerFailedError]]:
        state, _ = kept(self.folder / OWN)
        layouts = wanted(state, orders, self.seed)
        peers = {Peer(name=client_name(c), address=self.addresses[c]): c for c in layouts}

        def job(peer: Peer) -> dict[str, Tensors]:
            layout: Mapping[str, Layout] = layouts[peers[peer]]
            return fetch(self.identity, peer, orders.number, orders.nonce, layout, self.patience)

        came, failed = fetch_all(dict.fromkeys(peers, job))
        return {client_of(name): items for name, items in came.items()}, failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Clients of Flower's simulation: processes of one user that take turns, so nobody is there to answer.

    Each reads what the other trained from its folder. It gets exactly what orders grant, but nothing stands in its way to
    read more.
    """

    clients: Path
    seed: int

    def fetched(self, orders: Orders) -> tuple[Came, list[PeerFailedError]]:
        came: Came = {}
        failed: list[PeerFailedError] = []
        for client, items in orders.fetch.items():
            path = self.clients / client_name(client) / TRAINED
            state, number = kept(path) if path.is_file() else ({}, -1)
            if number != orders.number:
                failed.append(PeerFailedError(client_name(client), "refused", f"another round: {number}"))
                continue
            granted = orders.model_copy(update={"serve": {client: items}})
            came[client] = offered(state, granted, self.seed)
        return came, failed
