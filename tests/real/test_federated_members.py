"""Clients and server apart come to the same models as one process that has all of them; nobody loses its own."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from real.federated.certificates import issue, load
from real.federated.coordinator import Answer, Coordinator, sent
from real.federated.exchanging import Exchange, Folders, Network
from real.federated.federation import LocalFederation
from real.federated.local import State
from real.federated.member import OWN, TRAINED, Member, kept, offered
from real.federated.orders import Orders, client_name, orders_of
from real.federated.parcels import layout_of, pack, unpack
from real.federated.peers import Patience, PeerService
from real.federated.settings import Settings
from simcore.errors import InputError

CLIENTS = 4


def settings(system: str, **more: object) -> Settings:
    small = {"data": "digits", "width": 8, "experts": 3, "hidden": 6, "clients": CLIENTS, "epochs": 1, "P": 2}
    return Settings.of({"system": system, **small, **more})


def members(given: Settings, folder: Path) -> list[Member]:
    return [
        Member(c, given.shape, data, given.training, given.seed, folder / client_name(c))
        for c, data in enumerate(given.parts())
    ]


def play(
    given: Settings, coordinator: Coordinator, those: Mapping[int, Member], exchange: Mapping[int, Exchange]
) -> dict[int, Orders]:
    """One round, each client by itself."""
    answers = {}
    for c, member in those.items():
        trained = member.train(coordinator.number, coordinator.shared, given.strategy)
        answer = sent(given.strategy, trained.state, coordinator.number)
        arrived = unpack(pack(answer), layout_of(coordinator.expected()))
        answers[c] = Answer(state=arrived, samples=trained.samples)
    orders = orders_of(coordinator.decide(answers), 60.0)
    for c, member in those.items():
        came, _ = exchange[c].fetched(orders[c])
        member.mix(orders[c], came)
    return orders


def same(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        {"system": "fedmoe_da", "every": 2},
        {"system": "fedavg"},
        {"system": "fedprox", "proximal": 0.1},
        {"system": "gossip", "share": 0.5},
    ],
    ids=lambda more: str(more["system"]),
)
def test_apart_they_come_to_what_one_process_comes_to(tmp_path: Path, more: dict[str, object]) -> None:
    given = settings(**more)  # type: ignore[arg-type]
    whole = LocalFederation(given.shape, given.parts(), given.strategy, given.training, given.seed)
    coordinator = Coordinator(given.shape, given.strategy, CLIENTS, given.seed)
    those = dict(enumerate(members(given, tmp_path)))
    exchange = dict.fromkeys(those, Folders(clients=tmp_path, seed=given.seed))
    for _ in range(2):
        whole.round()
        play(given, coordinator, those, exchange)
    same(coordinator.shared, whole.server)
    for c, member in those.items():
        same(member.state, whole.states[c])


def test_over_the_network_too(tmp_path: Path) -> None:
    given = settings("fedmoe_da")
    those = dict(enumerate(members(given, tmp_path / "network")))
    others = dict(enumerate(members(given, tmp_path / "folders")))
    issue(tmp_path / "keys", [client_name(c) for c in those])
    identities = {c: load(tmp_path / "keys", client_name(c)) for c in those}
    services = {c: PeerService(identities[c]) for c in those}

    class Serving:
        """Offers what orders grant; all have theirs before anybody waits for long."""

        def __init__(self, client: int) -> None:
            self.network = Network(
                identity=identities[client],
                addresses={c: s.address for c, s in services.items()},
                folder=those[client].folder,
                seed=given.seed,
                patience=Patience(deadline_s=20.0),
            )

        def fetched(self, orders: Orders):  # type: ignore[no-untyped-def]
            return self.network.fetched(orders)

    coordinator, again = (Coordinator(given.shape, given.strategy, CLIENTS, given.seed) for _ in range(2))
    answers = {}
    for c, member in those.items():
        trained = member.train(0, coordinator.shared, given.strategy)
        answers[c] = Answer(state=sent(given.strategy, trained.state, 0), samples=trained.samples)
    orders = orders_of(coordinator.decide(answers), 60.0)
    for c, service in services.items():
        service.offer(orders[c].grants(), offered(those[c].state, orders[c], given.seed))
    for c, member in those.items():
        came, failed = Serving(c).fetched(orders[c])
        assert not failed and set(came) == set(orders[c].fetch)
        member.mix(orders[c], came)
    for service in services.values():
        service.close()
    play(given, again, others, dict.fromkeys(others, Folders(clients=tmp_path / "folders", seed=given.seed)))
    for c, member in those.items():
        assert all(torch.equal(member.state[n], others[c].state[n]) for n in member.state)


def test_what_does_not_come_is_left_out_and_the_rest_sums_to_one(tmp_path: Path) -> None:
    given = settings("fedmoe_da")
    those = dict(enumerate(members(given, tmp_path)))
    coordinator = Coordinator(given.shape, given.strategy, CLIENTS, given.seed)
    orders = play(given, coordinator, those, dict.fromkeys(those, Folders(clients=tmp_path, seed=given.seed)))
    one = those[0]
    trained, _ = kept(one.folder / TRAINED)
    one.mix(orders[0], {})
    parts = [p for p in orders[0].mixture if p.expert == 0 and p.client == 0]
    weights = np.array([p.weight for p in parts]) / sum(p.weight for p in parts)
    wanted = sum(w * trained["experts.up"][p.source] for w, p in zip(weights, parts, strict=True))
    torch.testing.assert_close(one.state["experts.up"][0], wanted, rtol=1e-5, atol=1e-6)


def test_a_model_survives_its_process(tmp_path: Path) -> None:
    given = settings("fedmoe_da")
    those = dict(enumerate(members(given, tmp_path)))
    coordinator = Coordinator(given.shape, given.strategy, CLIENTS, given.seed)
    play(given, coordinator, those, dict.fromkeys(those, Folders(clients=tmp_path, seed=given.seed)))
    again = members(given, tmp_path)
    for c, member in those.items():
        assert all(torch.equal(again[c].state[n], v) for n, v in member.state.items())
        assert (member.folder / OWN).stat().st_mode & 0o777 == 0o600


def test_orders_of_another_round_change_nothing(tmp_path: Path) -> None:
    given = settings("fedmoe_da")
    those = dict(enumerate(members(given, tmp_path)))
    coordinator = Coordinator(given.shape, given.strategy, CLIENTS, given.seed)
    exchange = dict.fromkeys(those, Folders(clients=tmp_path, seed=given.seed))
    old = play(given, coordinator, those, exchange)
    play(given, coordinator, those, exchange)
    before = (tmp_path / "client-0" / OWN).read_bytes()
    with pytest.raises(InputError, match="another round"):
        those[0].mix(old[0], {})
    assert (tmp_path / "client-0" / OWN).read_bytes() == before
    _, failed = exchange[0].fetched(old[0])
    assert {f.peer for f in failed} == {client_name(c) for c in old[0].fetch}


def test_settings_say_all_that_is_wrong() -> None:
    with pytest.raises(InputError) as caught:
        Settings.of({"system": "magic", "rounds": 0, "colour": "red"})
    assert len(caught.value.problems) == 3
