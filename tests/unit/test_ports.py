"""Ports that are told before anybody listens: free, of nobody else's, and not of those that the system gives away."""

import json
import socket
import subprocess
import sys

import pytest

from real.federated import ports
from real.federated.ports import RANGE, free_ports
from simcore.errors import CannotRun

OTHER = (
    "import json; from real.federated.ports import free_ports; print(json.dumps(free_ports(40)), flush=True); input()"
)


def test_processes_that_ask_at_once_get_different_ports() -> None:
    """Claims hold until a process ends, whether or not it listens."""
    others = [
        subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)
    ]
    found = free_ports(40) + free_ports(40)
    for other in others:
        assert other.stdout is not None
        found += json.loads(other.stdout.readline())
    for other in others:
        other.communicate(b"\n", timeout=60)
    assert len(set(found)) == len(found) == 200


def test_the_system_gives_none_of_them_away() -> None:
    if not RANGE.exists():
        pytest.skip("a system that does not say which ports are its own")
    low, high = map(int, RANGE.read_text().split())
    assert not [p for p in free_ports(100) if low <= p <= high]


def test_a_port_at_which_somebody_listens_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr(ports, "_claims", {})
    monkeypatch.setattr(ports.random, "sample", lambda *_: [port])
    with socket.socket() as one:
        one.bind(("127.0.0.1", port))
        one.listen()
        with pytest.raises(CannotRun, match="not enough ports"):
            free_ports(1)
