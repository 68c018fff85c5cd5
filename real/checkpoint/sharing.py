"""Messages between ranks of one host through memory that they share: the network's loopback takes several times as long.

A rank writes its messages into anonymous memory (memfd) and tells peers where they are; they read them through /proc. The memory
has no name in any file system, so nothing stays behind however a rank ends. Ranks that cannot open one another's memory, on other
hosts or in other containers, are not neighbours and use the network.
"""

import errno
import mmap
import os
import secrets
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

TOKEN_B = 16
"""Of the random number at the beginning of each arena by which a peer recognises it."""
HEADER_B = 4096
"""Before the messages: they begin on a page."""
SLOTS = 2
"""Messages stay until the exchange after the next: a peer may still be reading them when the next ones are written."""
NAME = "checkpoint"
TICKET = 3
"""Numbers that tell a peer where its message is: the arena's descriptor and its generation, and the first byte."""

AllGather = Callable[[bytes], list[bytes]]


@dataclass(slots=True)
class _Peer:
    """Another rank's process, and what is mapped of its arena."""

    pid: int
    generation: int = -1
    memory: NDArray[np.uint8] | None = None

    def arena(self, descriptor: int, generation: int) -> NDArray[np.uint8]:
        """Its arena, mapped anew if it is another one than before."""
        if self.memory is None or self.generation != generation:
            self.memory, self.generation = _mapped(self.pid, descriptor), generation
        return self.memory


class Neighbours:
    """Ranks on this host. Calls are collective over all ranks, neighbours or not."""

    def __init__(self, rank: int, all_gather: AllGather) -> None:
        self._arena: mmap.mmap | None = None
        self._descriptor, self._generation, self._slot_B, self._turn = -1, 0, 0, 0
        token = secrets.token_bytes(TOKEN_B)
        told = all_gather(self._introduced(token))
        peers = {r: _Peer(_pid(raw)) for r, raw in enumerate(told) if r != rank and self._arena is not None}
        seen = bytes(_recognised(told[r]) if r in peers else False for r in range(len(told)))
        mutual = all_gather(seen)
        self.peers = {r: peer for r, peer in peers.items() if seen[r] and mutual[r][rank]}

    def _introduced(self, token: bytes) -> bytes:
        """Make a first arena; its owner, descriptor and token, or nothing where the system has no such memory."""
        with suppress(OSError, AttributeError):
            self._reserve(0)
            assert self._arena is not None
            self._arena[:TOKEN_B] = token
            return np.array([os.getpid(), self._descriptor], dtype="<i8").tobytes() + token
        return b""

    def _reserve(self, slot_B: int) -> None:
        """Room for messages of `slot_B` bytes in each exchange. What was there stays open: a peer may not have come to it yet."""
        if self._arena is not None and slot_B <= self._slot_B:
            return
        slot_B = max(slot_B, 2 * self._slot_B)
        self._descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        os.ftruncate(self._descriptor, HEADER_B + SLOTS * slot_B)
        self._arena = mmap.mmap(self._descriptor, HEADER_B + SLOTS * slot_B)
        self._slot_B, self._generation = slot_B, self._generation + 1

    def put(self, messages: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Lay out messages to neighbours; returns what to tell each of them, whether or not there is one for it."""
        if self._arena is None or not self.peers:
            return {}
        sizes = {peer: -(-len(message) // HEADER_B) * HEADER_B for peer, message in messages.items()}
        self._reserve(sum(sizes.values()))
        self._turn = (self._turn + 1) % SLOTS
        start_B = HEADER_B + self._turn * self._slot_B
        tickets = {}
        for peer in self.peers:
            tickets[peer] = torch.tensor([self._descriptor, self._generation, start_B])
            if peer in messages:
                memory = np.frombuffer(self._arena, dtype=np.uint8)
                memory[start_B : start_B + len(messages[peer])] = messages[peer].numpy()
                start_B += sizes[peer]
        return tickets

    def take(self, peer: int, ticket: torch.Tensor, message: torch.Tensor) -> None:
        """Fill `message` with what a neighbour's ticket stands for."""
        descriptor, generation, start_B = ticket.tolist()
        arena = self.peers[peer].arena(descriptor, generation)
        message.numpy()[:] = arena[start_B : start_B + len(message)]


def _pid(told: bytes) -> int:
    return int(np.frombuffer(told[:8], dtype="<i8")[0]) if told else -1


def _recognised(told: bytes) -> bool:
    """Whether the process of that number on this host has memory with that token."""
    if not told:
        return False
    pid, descriptor = np.frombuffer(told[:16], dtype="<i8").tolist()
    with suppress(OSError, ValueError):
        return _mapped(pid, descriptor)[:TOKEN_B].tobytes() == told[16:]
    return False


def _mapped(pid: int, descriptor: int) -> NDArray[np.uint8]:
    """The arena behind a descriptor of another process. Raises OSError where it is anything else."""
    path = Path(f"/proc/{pid}/fd/{descriptor}")
    if not str(path.readlink()).startswith(f"/memfd:{NAME}"):
        raise FileNotFoundError(errno.ENOENT, "no memory of a checkpoint", str(path))
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return np.frombuffer(mmap.mmap(handle, 0, prot=mmap.PROT_READ), dtype=np.uint8)
    finally:
        os.close(handle)
