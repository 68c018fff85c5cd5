"""Experts between peers: what is granted, to whom it is, and once; whatever a peer sends, memory stays bounded."""

import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch

from real.federated.certificates import Identity, issue, load
from real.federated.granting import ATTEMPTS, REQUEST_B, Grants, Guard, RefusedError, Request, fresh
from real.federated.parcels import BadParcelError, layout_of, most_B, pack, unpack
from real.federated.peers import (
    METHOD,
    PIECE_B,
    SERVICE,
    Patience,
    Peer,
    PeerFailedError,
    PeerService,
    fetch,
    fetch_all,
)
from simcore.errors import InputError

EXPERT = {"up": torch.randn(16, 8), "down": torch.randn(8, 4)}
ITEMS = {f"expert-{e}": {n: t + e for n, t in EXPERT.items()} for e in range(3)}
LAYOUT = layout_of(EXPERT)
SHORT = Patience(deadline_s=2.0, unreachable_s=0.3)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    folder = tmp_path_factory.mktemp("certificates") / "run"
    names = ["client-0", "client-1", "client-2"]
    issue(folder, names)
    return {name: load(folder, name) for name in names}


@pytest.fixture
def nonce() -> str:
    return fresh()


@pytest.fixture
def service(identities: dict[str, Identity], nonce: str) -> Iterator[PeerService]:
    """Client 0, that grants expert 1 to client 1."""
    with PeerService(identities["client-0"]) as found:
        found.offer(Grants(number=3, nonce=nonce, valid_s=60.0, items={"client-1": ("expert-1",)}), ITEMS)
        yield found


def ask(
    who: Identity,
    address: str,
    nonce: str,
    *,
    items: tuple[str, ...] = ("expert-1",),
    number: int = 3,
    name: str = "client-0",
    patience: Patience = SHORT,
) -> dict[str, dict[str, torch.Tensor]]:
    peer = Peer(name=name, address=address)
    return fetch(who, peer, number, nonce, dict.fromkeys(items, LAYOUT), patience)


def raw(who: Identity, address: str, data: bytes) -> bytes:
    """What `data` is answered with."""
    credentials = grpc.ssl_channel_credentials(who.authority, who.key, who.certificate)
    with grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", "client-0")]) as channel:
        return b"".join(channel.unary_stream(f"/{SERVICE}/{METHOD}")(data, timeout=5.0))


def test_what_is_granted_arrives_unchanged(service: PeerService, identities: dict[str, Identity], nonce: str) -> None:
    found = ask(identities["client-1"], service.address, nonce)
    assert all(torch.equal(found["expert-1"][n], t) for n, t in ITEMS["expert-1"].items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"items": ("expert-0",)}, "not granted"),
        ({"items": ("expert-1", "expert-2")}, "not granted"),
        ({"items": ("../client-0.key",)}, "not granted"),
        ({"number": 2}, "another round"),
        ({"nonce": "0" * 32}, "another round"),
        ({"who": "client-2"}, "not granted"),
    ],
)
def test_nothing_else_is_served(
    service: PeerService, identities: dict[str, Identity], nonce: str, change: dict[str, object], reason: str
) -> None:
    given = {"who": "client-1", "nonce": nonce, **change}
    with pytest.raises(PeerFailedError, match=reason) as caught:
        ask(identities[str(given.pop("who"))], service.address, str(given.pop("nonce")), **given)  # type: ignore[arg-type]
    assert (caught.value.peer, caught.value.kind) == ("client-0", "refused")


def test_a_request_counts_once(service: PeerService, identities: dict[str, Identity], nonce: str) -> None:
    request = Request(number=3, nonce=nonce, items=("expert-1",)).to_bytes()
    assert raw(identities["client-1"], service.address, request)
    with pytest.raises(grpc.RpcError) as caught:
        raw(identities["client-1"], service.address, request)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


def test_a_peer_is_served_a_few_times_only(service: PeerService, identities: dict[str, Identity], nonce: str) -> None:
    for _ in range(ATTEMPTS):
        ask(identities["client-1"], service.address, nonce)
    with pytest.raises(PeerFailedError, match="too often"):
        ask(identities["client-1"], service.address, nonce)


@pytest.mark.parametrize("data", [b"", b"\x80\x04.", b"{}", b"[" * 5000, b'{"number": 3}', b"x" * (REQUEST_B + 1)])
def test_requests_that_make_no_sense_are_refused(
    service: PeerService, identities: dict[str, Identity], data: bytes
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw(identities["client-1"], service.address, data)
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_grants_end_with_their_time_and_with_the_next_round() -> None:
    now = [0.0]
    guard = Guard(clock=lambda: now[0])
    grants = Grants(number=0, nonce=fresh(), valid_s=10.0, items={"client-1": ("expert-1",)})
    guard.take_up(grants)
    guard.admit("client-1", Request(number=0, nonce=grants.nonce, items=("expert-1",)))
    now[0] = 11.0
    with pytest.raises(RefusedError, match="expired"):
        guard.admit("client-1", Request(number=0, nonce=grants.nonce, items=("expert-1",)))
    guard.take_up(replace(grants, number=1, nonce=fresh()))
    for number in (0, 1):
        with pytest.raises(RefusedError, match="another round"):
            guard.admit("client-1", Request(number=number, nonce=grants.nonce, items=("expert-1",)))


def test_who_asks_early_waits_for_the_round(identities: dict[str, Identity], nonce: str) -> None:
    with PeerService(identities["client-0"]) as service, futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, identities["client-1"], service.address, nonce, number=0)
        time.sleep(0.1)
        assert not asked.done()
        service.offer(Grants(number=0, nonce=nonce, valid_s=60.0, items={"client-1": ("expert-1",)}), ITEMS)
        assert torch.equal(asked.result()["expert-1"]["up"], ITEMS["expert-1"]["up"])


def test_who_is_ahead_of_a_peer_that_still_serves_the_run_before_asks_again(
    service: PeerService, identities: dict[str, Identity], nonce: str
) -> None:
    with futures.ThreadPoolExecutor(1) as pool:
        patience = Patience(deadline_s=20.0, unreachable_s=10.0)
        other = fresh()
        asked = pool.submit(ask, identities["client-1"], service.address, other, number=0, patience=patience)
        time.sleep(0.3)
        assert not asked.done()
        service.offer(Grants(number=0, nonce=other, valid_s=60.0, items={"client-1": ("expert-1",)}), ITEMS)
        assert torch.equal(asked.result()["expert-1"]["up"], ITEMS["expert-1"]["up"])


def test_unknown_certificates_are_refused_on_either_side(
    service: PeerService, identities: dict[str, Identity], nonce: str, tmp_path: Path
) -> None:
    issue(tmp_path / "others", ["client-0", "client-1"])
    stranger = load(tmp_path / "others", "client-1")
    with pytest.raises(PeerFailedError, match="unreachable"):
        ask(stranger, service.address, nonce)
    with pytest.raises(PeerFailedError, match="unreachable"):  # knows whom to trust, but cannot show anything
        ask(replace(stranger, authority=identities["client-1"].authority), service.address, nonce)
    with PeerService(load(tmp_path / "others", "client-0")) as impostor:
        impostor.offer(Grants(number=3, nonce=nonce, valid_s=60.0, items={"client-1": ("expert-1",)}), ITEMS)
        with pytest.raises(PeerFailedError, match="unreachable"):
            ask(identities["client-1"], impostor.address, nonce)


def test_a_peer_cannot_pass_for_another(service: PeerService, identities: dict[str, Identity], nonce: str) -> None:
    with pytest.raises(PeerFailedError, match="client-2: unreachable"):
        ask(identities["client-1"], service.address, nonce, name="client-2")


def test_keys_are_for_their_owner_and_names_are_names(tmp_path: Path) -> None:
    issue(tmp_path / "run", ["server", "client-0"], hosts={"server": ["localhost", "127.0.0.1"]})
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "run").iterdir()} == {0o600}
    (tmp_path / "run" / "client-0.key").chmod(0o644)
    with pytest.raises(InputError, match="600"):
        load(tmp_path / "run", "client-0")
    with pytest.raises(InputError, match="missing"):
        load(tmp_path / "run", "client-7")
    with pytest.raises(InputError, match="host names"):
        issue(tmp_path / "more", ["a/b", "client-0", "client-0"])


def good() -> dict[str, torch.Tensor]:
    return {f"expert-1/{n}": t for n, t in EXPERT.items()}


BAD: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "noise": lambda: bytes(range(256)),
    "a pickle": lambda: b"\x80\x04\x95" + bytes(200),
    "a header that promises much": lambda: (1 << 60).to_bytes(8, "little") + b"{" * 100,
    "half a parcel": lambda: pack(good())[:-9],
    "another shape": lambda: pack({**good(), "expert-1/up": torch.zeros(8, 16)}),
    "another type": lambda: pack({**good(), "expert-1/up": torch.zeros(16, 8, dtype=torch.int32)}),
    "one tensor less": lambda: pack({"expert-1/up": EXPERT["up"]}),
    "another name": lambda: pack({"expert-1/up": EXPERT["up"], "expert-1/more": EXPERT["down"]}),
    "no numbers": lambda: pack({**good(), "expert-1/up": torch.full((16, 8), float("nan"))}),
}


@pytest.mark.parametrize("what", list(BAD))
def test_parcels_that_are_not_what_was_asked_for(what: str) -> None:
    layout = layout_of(good())
    assert unpack(pack(good()), layout).keys() == layout.keys()
    with pytest.raises(BadParcelError):
        unpack(BAD[what](), layout)


def answering(identity: Identity, answer: Callable[[], Iterator[bytes]]) -> tuple[grpc.Server, str]:
    """A peer with a good certificate that answers as it likes."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_stream_rpc_method_handler(lambda data, context: answer())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    credentials = grpc.ssl_server_credentials([(identity.key, identity.certificate)], identity.authority, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, f"127.0.0.1:{port}"


def test_a_peer_that_sends_garbage_is_named(identities: dict[str, Identity], nonce: str) -> None:
    server, address = answering(identities["client-0"], lambda: iter([BAD["another shape"]()]))
    with pytest.raises(PeerFailedError) as caught:
        ask(identities["client-1"], address, nonce)
    assert (caught.value.peer, caught.value.kind) == ("client-0", "garbage")
    server.stop(None)


def test_ten_gigabytes_are_hung_up_on(identities: dict[str, Identity], nonce: str) -> None:
    piece, sent = bytes(PIECE_B), [0]

    def flood() -> Iterator[bytes]:
        while sent[0] * PIECE_B < 10e9:
            sent[0] += 1
            yield piece

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    server, address = answering(identities["client-0"], flood)
    with pytest.raises(PeerFailedError) as caught:
        ask(identities["client-1"], address, nonce)
    assert caught.value.kind == "too large"
    server.stop(None).wait()
    assert sent[0] < 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_one_large_message_is_refused_by_its_size(identities: dict[str, Identity], nonce: str) -> None:
    server, address = answering(identities["client-0"], lambda: iter([bytes(8 * PIECE_B)]))
    with pytest.raises(PeerFailedError) as caught:
        ask(identities["client-1"], address, nonce)
    assert caught.value.kind == "too large"
    server.stop(None)


def test_a_peer_that_stalls_costs_its_deadline_and_no_more(identities: dict[str, Identity], nonce: str) -> None:
    over = threading.Event()

    def stall() -> Iterator[bytes]:
        yield pack(good())[:10]
        over.wait(20.0)

    server, address = answering(identities["client-0"], stall)
    with pytest.raises(PeerFailedError) as caught:
        ask(identities["client-1"], address, nonce, patience=Patience(deadline_s=0.5))
    assert caught.value.kind == "stalled"
    over.set()
    server.stop(None)


def test_others_deliver_while_one_fails(service: PeerService, identities: dict[str, Identity], nonce: str) -> None:
    good_one, gone = Peer(name="client-0", address=service.address), Peer(name="client-2", address="127.0.0.1:9")

    def job(peer: Peer) -> dict[str, dict[str, torch.Tensor]]:
        return fetch(identities["client-1"], peer, 3, nonce, {"expert-1": LAYOUT}, SHORT)

    came, failed = fetch_all({good_one: job, gone: job})
    assert list(came) == ["client-0"]
    assert [(f.peer, f.kind) for f in failed] == [("client-2", "unreachable")]


def test_the_largest_parcel_is_known_before_it_comes() -> None:
    layout = layout_of(good())
    assert len(pack(good())) <= most_B(layout) < len(pack(good())) + 4096
