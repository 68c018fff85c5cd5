"""Links of given rates and latencies between processes of one machine: relays that let bytes through as token buckets allow.

Every link has one bucket that all flows over it share. A piece of a flow takes from the buckets of all its links at once,
waits until the last of them has let it through, and arrives a latency later; only then the flow's next piece takes its
turn. So flows over a full link get equal shares, and what one cannot use because of another link is left to the others:
about max-min, as in the simulator.

TLS passes through unread: who relays cannot see or change what peers say.
"""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

Pieces = asyncio.Queue[tuple[float, bytes]]

PIECE_B, MOST_B, PIECE_S = 16 * 1024, 64 * 1024, 0.004
"""A piece is at least and at most so long, in between what its way lets through in `PIECE_S`."""
AHEAD = 4
"""Pieces that are read before the links let them through."""
SOCKET_B = 64 * 1024
"""What the system may keep of a flow at each of its sockets, so that a slow link is felt soon."""


class Bucket:
    """Lets `B_per_s` through, without bursts."""

    def __init__(self, B_per_s: float) -> None:
        self.B_per_s = B_per_s
        self._free_s = 0.0

    def take(self, nbytes: int, now_s: float) -> float:
        """When `nbytes` that ask at `now_s` are through."""
        self._free_s = max(self._free_s, now_s) + nbytes / self.B_per_s
        return self._free_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From one to another: the buckets of its links, what it lets through alone, and its latency."""

    buckets: tuple[Bucket, ...]
    latency_s: float

    @property
    def piece_B(self) -> int:
        rate = min((b.B_per_s for b in self.buckets), default=float("inf"))
        return int(min(max(rate * PIECE_S, PIECE_B), MOST_B))


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What comes to `port` of this machine goes to `target` (host, port) over the links `there`, answers over those `back`."""

    port: int
    target: tuple[str, int]
    there: tuple[int, ...]
    back: tuple[int, ...]
    there_s: float
    back_s: float


class Relays:
    """Relays for `routes` over links of `capacity_B_per_s`, by number, in the running event loop."""

    def __init__(self, capacity_B_per_s: Sequence[float], routes: Sequence[Route]) -> None:
        self.buckets = [Bucket(rate) for rate in capacity_B_per_s]
        self.routes = routes
        self._servers: list[asyncio.Server] = []
        self._flows: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises `OSError` for a port that is taken."""
        for route in self.routes:
            server = await asyncio.start_server(self._accept(route), sock=_listening(route.port), limit=MOST_B)
            self._servers.append(server)

    async def close(self) -> None:
        """Hang up on everybody."""
        for server in self._servers:
            server.close()
        for flow in list(self._flows):
            flow.cancel()
        await asyncio.gather(*self._flows, return_exceptions=True)

    def _way(self, links: Sequence[int], latency_s: float) -> Way:
        return Way(buckets=tuple(self.buckets[i] for i in links), latency_s=latency_s)

    def _accept(self, route: Route):  # type: ignore[no-untyped-def]  # what asyncio calls
        there, back = self._way(route.there, route.there_s), self._way(route.back, route.back_s)

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                other = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                _small(other)
                other.setblocking(False)
                await asyncio.get_running_loop().sock_connect(other, route.target)
                far_reader, far_writer = await asyncio.open_connection(sock=other, limit=MOST_B)
            except OSError:
                writer.transport.abort()
                return
            both = [
                asyncio.create_task(_carry(reader, far_writer, there)),
                asyncio.create_task(_carry(far_reader, writer, back)),
            ]
            self._flows.update(both)
            await asyncio.gather(*both, return_exceptions=True)
            self._flows.difference_update(both)

        return accepted


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
    """All that `reader` gets, until it ends; then the other side is hung up on, too."""
    held = min([b.B_per_s for b in way.buckets], default=1e9) * way.latency_s
    came: Pieces = asyncio.Queue(maxsize=AHEAD)
    late: Pieces = asyncio.Queue(maxsize=2 + int(held // way.piece_B))
    try:
        async with asyncio.TaskGroup() as steps:
            for step in (_read(reader, came, way.piece_B), _meter(came, late, way), _deliver(late, writer)):
                steps.create_task(step)
    finally:
        with contextlib.suppress(OSError):
            writer.close()


async def _read(reader: asyncio.StreamReader, came: Pieces, piece_B: int) -> None:
    """Pieces with the time at which they were there; an empty one is the end."""
    piece = b"more"
    while piece:
        piece = await reader.read(piece_B)
        await came.put((asyncio.get_running_loop().time(), piece))


async def _meter(came: Pieces, late: Pieces, way: Way) -> None:
    """Pieces as the buckets let them through, with the time at which they arrive.

    A piece that waits already asks at the time at which the one before was through, however late this process woke up: so a
    flow gets its full rate on a busy machine, too.
    """
    loop, through_s, piece = asyncio.get_running_loop(), 0.0, b"more"
    while piece:
        there_s, piece = await came.get()
        asks_s = max(there_s, through_s)
        through_s = max((b.take(len(piece), asks_s) for b in way.buckets), default=asks_s)
        await asyncio.sleep(through_s - loop.time())
        await late.put((through_s + way.latency_s, piece))


async def _deliver(late: Pieces, writer: asyncio.StreamWriter) -> None:
    """Pieces when their time has come."""
    loop, piece = asyncio.get_running_loop(), b"more"
    while piece:
        at_s, piece = await late.get()
        await asyncio.sleep(at_s - loop.time())
        writer.write(piece)
        await writer.drain()


def _listening(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _small(found)  # what is accepted has the same
    found.bind(("127.0.0.1", port))
    return found


def _small(one: socket.socket) -> None:
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_B)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_B)
