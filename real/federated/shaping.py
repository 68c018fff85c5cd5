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

PIECE_B = 16 * 1024
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
            server = await asyncio.start_server(self._accept(route), sock=_listening(route.port), limit=PIECE_B)
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
                far_reader, far_writer = await asyncio.open_connection(sock=other, limit=PIECE_B)
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
    held = max([b.B_per_s for b in way.buckets], default=1e9) * way.latency_s
    late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=2 + int(held // PIECE_B))
    loop = asyncio.get_running_loop()

    async def deliver() -> None:
        while True:
            at_s, piece = await late.get()
            await asyncio.sleep(at_s - loop.time())
            if not piece:
                return
            writer.write(piece)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        while piece := await reader.read(PIECE_B):
            through_s = max((b.take(len(piece), loop.time()) for b in way.buckets), default=loop.time())
            await asyncio.sleep(through_s - loop.time())
            put = asyncio.create_task(late.put((through_s + way.latency_s, piece)))
            await asyncio.wait([put, delivery], return_when=asyncio.FIRST_COMPLETED)
            if delivery.done():
                break
        await late.put((loop.time() + way.latency_s, b""))
        await delivery
    finally:
        delivery.cancel()
        with contextlib.suppress(OSError):
            writer.close()


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


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    found = []
    for _ in range(count):
        one = socket.socket()
        one.bind(("127.0.0.1", 0))
        found.append(one)
    ports = [one.getsockname()[1] for one in found]
    for one in found:
        one.close()
    return ports
