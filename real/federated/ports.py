"""Ports for processes that are told one before they listen: nobody else gets them meanwhile."""

import random
import socket
import sys
from pathlib import Path

from simcore.errors import CannotRun, Problem

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, USUAL_END = 20_000, 49_152
"""Ports from here to where the system's own begin; where it does not say, to where they begin by convention (RFC 6335)."""

_claims: dict[int, socket.socket] = {}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at. Raises `CannotRun` if there are not so many.

    They are none of those that the system hands out for outgoing connections and port 0, and on Linux this process claims them
    until it ends, so that no other that asks here gets them. An abstract socket is a claim: it goes with its process.
    """
    first = int(RANGE.read_text().split()[0]) if RANGE.exists() else USUAL_END
    every = range(min(LOWEST, first - 1), first)
    found: list[int] = []
    for port in random.sample(every, len(every)):
        if len(found) == count:
            break
        if port not in _claims and _is_free(port):
            claim = _claimed(port)
            if claim is not None:
                _claims[port] = claim
                found.append(port)
    if len(found) < count:
        problem = Problem("ports", f"{len(found)} are free", f"{count} from {every.start} to {every.stop - 1}")
        raise CannotRun("there are not enough ports", [problem])
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _claimed(port: int) -> socket.socket | None:
    """What holds the claim as long as it is open; None where another process has it."""
    claim = socket.socket(socket.AF_UNIX)
    if sys.platform != "linux":
        return claim
    try:
        claim.bind(f"\0windtunnel-port-{port}")
    except OSError:
        claim.close()
        return None
    return claim
