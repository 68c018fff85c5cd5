"""Experts from client to client: gRPC with mutual TLS, one call to fetch what the round grants.

A peer is who its certificate says. `PeerService` answers with a stream of pieces of a safetensors parcel. `fetch` knows how
much it asked for and hangs up on more; a piece is at most `PIECE_B`, which gRPC checks before it takes memory. Each call
has a deadline.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from real.federated.certificates import Identity
from real.federated.granting import REQUEST_B, Grants, Guard, Reason, RefusedError, Request
from real.federated.parcels import BadParcelError, Layout, Tensors, most_B, pack, unpack

SERVICE, METHOD = "windtunnel.Peer", "Fetch"
PIECE_B = 256 * 1024
FRAME_B = 1024
WORKERS = 16
"""Calls that are answered at a time; further ones are told to come later."""

CODES: Mapping[Reason, grpc.StatusCode] = {
    "malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown peer": grpc.StatusCode.UNAUTHENTICATED,
    "not granted": grpc.StatusCode.PERMISSION_DENIED,
    "another round": grpc.StatusCode.FAILED_PRECONDITION,
    "expired": grpc.StatusCode.DEADLINE_EXCEEDED,
    "replayed": grpc.StatusCode.ALREADY_EXISTS,
    "too often": grpc.StatusCode.RESOURCE_EXHAUSTED,
}

AGAIN = (grpc.StatusCode.UNAVAILABLE, CODES["another round"])
"""Who is answered so asks once more."""

Kind = Literal["unreachable", "stalled", "refused", "garbage", "too large"]


class PeerFailedError(Exception):
    """A peer that did not deliver, and how."""

    def __init__(self, peer: str, kind: Kind, said: str) -> None:
        super().__init__(f"{peer}: {kind}: {said}")
        self.peer, self.kind, self.said = peer, kind, said


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Whom to ask, by the name in its certificate, and where."""

    name: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """`deadline_s` for a whole answer, `unreachable_s` until a peer is given up at whose address nobody is, or that stays in
    another round: one that serves the run before has not heard of the next one yet."""

    deadline_s: float = 60.0
    unreachable_s: float = 5.0


class PeerService:
    """Serves what `offer` was last given to those that it was granted to, at `port` until it is closed."""

    def __init__(
        self,
        identity: Identity,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        workers: int = WORKERS,
        guard: Guard | None = None,
    ) -> None:
        self.guard = guard or Guard()
        self._items: Mapping[str, Tensors] = {}
        self._lock = threading.Lock()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(workers, thread_name_prefix=f"peer {identity.name}"),
            maximum_concurrent_rpcs=2 * workers,
            options=[("grpc.max_receive_message_length", REQUEST_B), ("grpc.so_reuseport", 0)],
        )
        handler = grpc.unary_stream_rpc_method_handler(self._answer)  # bytes in, bytes out
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        credentials = grpc.ssl_server_credentials(
            [(identity.key, identity.certificate)], root_certificates=identity.authority, require_client_auth=True
        )
        self.port: int = self._server.add_secure_port(f"{host}:{port}", credentials)
        self.address = f"{host}:{self.port}"
        self._server.start()

    def offer(self, grants: Grants, items: Mapping[str, Tensors]) -> None:
        """From now on `items` are served as `grants` say; what was offered before is not."""
        with self._lock:
            self._items = items
            self.guard.take_up(grants)

    def close(self) -> None:
        self._server.stop(grace=None).wait()

    def __enter__(self) -> "PeerService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            request = Request.from_bytes(data)
            peer = _name(context)
            context.add_callback(self.guard.wake)
            self.guard.wait(peer, request.number, context.time_remaining() or 0.0, context.is_active)
            with self._lock:
                self.guard.admit(peer, request)
                items = self._items
        except RefusedError as error:
            context.abort(CODES[error.reason], str(error))
        parcel = pack({f"{item}/{name}": t for item in request.items for name, t in items[item].items()})
        for start in range(0, len(parcel), PIECE_B):
            yield parcel[start : start + PIECE_B]


class Fetcher:
    """Asks peers, over connections that stay open."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._lock = threading.Lock()
        self._channels: dict[Peer, Any] = {}

    def fetch(
        self, peer: Peer, number: int, nonce: str, layouts: Mapping[str, Layout], patience: Patience
    ) -> dict[str, Tensors]:
        """The items of `layouts` from `peer`: tensors by item and name.

        Raises `PeerFailedError` if it cannot be reached, is late, refuses, or sends anything but what was asked for.
        """
        flat = {f"{item}/{name}": leaf for item, layout in layouts.items() for name, leaf in layout.items()}
        call = self._channel(peer).unary_stream(f"/{SERVICE}/{METHOD}")
        begun = time.monotonic()
        end, reach = begun + patience.deadline_s, begun + patience.unreachable_s
        while True:
            request = Request(number=number, nonce=nonce, items=tuple(layouts))
            try:
                data = _received(call, request, peer, most_B(flat), end)
                break
            except grpc.RpcError as error:
                if error.code() not in AGAIN or time.monotonic() > min(reach, end):
                    raise _failure(peer, error) from error
                time.sleep(0.1)
        try:
            found = unpack(data, flat)
        except BadParcelError as error:
            raise PeerFailedError(peer.name, "garbage", str(error)) from error
        return {item: {name: found[f"{item}/{name}"] for name in layout} for item, layout in layouts.items()}

    def close(self) -> None:
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _channel(self, peer: Peer) -> Any:
        with self._lock:
            if peer not in self._channels:
                self._channels[peer] = _channel(self.identity, peer)
            return self._channels[peer]


def fetch(
    identity: Identity, peer: Peer, number: int, nonce: str, layouts: Mapping[str, Layout], patience: Patience
) -> dict[str, Tensors]:
    """`Fetcher.fetch` once."""
    with Fetcher(identity) as fetcher:
        return fetcher.fetch(peer, number, nonce, layouts, patience)


def fetch_all(
    jobs: Mapping[Peer, Callable[[Peer], dict[str, Tensors]]], parallel: int = 32
) -> tuple[dict[str, dict[str, Tensors]], list[PeerFailedError]]:
    """What each peer delivered, by its name, and who failed; all are asked at a time."""
    came: dict[str, dict[str, Tensors]] = {}
    failed: list[PeerFailedError] = []
    with futures.ThreadPoolExecutor(max(min(len(jobs), parallel), 1)) as pool:
        running = {peer: pool.submit(job, peer) for peer, job in jobs.items()}
        for peer, one in running.items():
            try:
                came[peer.name] = one.result()
            except PeerFailedError as error:
                failed.append(error)
    return came, failed


def _channel(identity: Identity, peer: Peer) -> Any:
    credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)
    options = [
        ("grpc.ssl_target_name_override", peer.name),
        ("grpc.max_receive_message_length", PIECE_B + FRAME_B),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    return grpc.secure_channel(peer.address, credentials, options)


def _received(call: Any, request: Request, peer: Peer, most: int, end: float) -> bytes:
    """All pieces, at most `most` bytes of them."""
    pieces: Iterable[bytes] = call(request.to_bytes(), timeout=max(end - time.monotonic(), 0.001))
    data = bytearray()
    for piece in pieces:
        if len(data) + len(piece) > most:
            pieces.cancel()  # type: ignore[attr-defined]
            raise PeerFailedError(peer.name, "too large", f"more than the {most:,} B that were asked for")
        data += piece
    return bytes(data)


def _failure(peer: Peer, error: Any) -> PeerFailedError:
    said = str(error.details())[:300]
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return PeerFailedError(peer.name, "unreachable", said)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in said:
        return PeerFailedError(peer.name, "too large", said)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not said.startswith("expired"):
        return PeerFailedError(peer.name, "stalled", said)
    if error.code() in CODES.values():
        return PeerFailedError(peer.name, "refused", said)
    return PeerFailedError(peer.name, "garbage", f"{error.code()}: {said}")


def _name(context: grpc.ServicerContext) -> str:
    """Who asks, by its certificate."""
    names = context.auth_context().get("x509_common_name", ())
    if len(names) != 1:
        raise RefusedError("unknown peer")
    return str(names[0].decode(errors="replace"))
