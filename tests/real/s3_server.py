"""An S3 server in a process of its own (moto's), and a line to it that can be cut at any request."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

VERBS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
PATIENCE_S = 60


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def served() -> Iterator[tuple[int, Any]]:
    """Port and process of a server."""
    port = free_port()
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.05)
        yield port, process
    finally:
        process.kill()
        process.wait()


def options(port: int) -> dict[str, Any]:
    """Of fsspec for a server on this machine; errors are told at once instead of after many tries."""
    quick = {"retries": {"max_attempts": 0}, "connect_timeout": 5, "read_timeout": 20}
    return {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "key": "key",
        "secret": "secret",
        "config_kwargs": quick,
        "skip_instance_cache": True,
    }


class Line:
    """Hands bytes on to a server and counts requests; `cut_at` the n-th from now it closes everything, until `mended`."""

    def __init__(self, target: int) -> None:
        self.target, self.requests, self._cut = target, 0, 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at(self, number: int) -> None:
        with self._lock:
            self.requests, self._cut = 0, number

    def mended(self) -> None:
        with self._lock:
            self.requests = self._cut = 0

    def close(self) -> None:
        self._listening.close()
        self._hang_up()

    def _hang_up(self) -> None:
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _is_cut(self, data: bytes = b"") -> bool:
        with self._lock:
            self.requests += data.startswith(VERBS)
            return bool(self._cut) and self.requests >= self._cut

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self._is_cut():
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open |= {client, server}
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink, source is client), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if counted and self._is_cut(data):
                    self._hang_up()
                    break
                sink.sendall(data)
        for end in (source, sink):
            self._open.discard(end)
            end.close()
