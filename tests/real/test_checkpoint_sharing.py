"""Ranks of one host hand on what they read through memory that they share, others through the network: with the same result."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from real.checkpoint.ranks import Processes, own_group
from real.checkpoint.sharing import NAME, Neighbours
from tests.real.checkpoint_processes import ended, world

SIZES = (3, 1000, 70_000, 5, 300_000, 300_000, 1)


def message(source: int, target: int, turn: int) -> torch.Tensor:
    """What one rank tells another in a turn; nothing in some turns."""
    size = 0 if (source + 2 * target + turn) % 4 == 0 else SIZES[turn] + source
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(turn * 9 + source))


def neighbours_of(ranks: Processes) -> Mapping[int, object]:
    assert ranks._neighbours is not None
    return ranks._neighbours.peers


@pytest.mark.parametrize("where", ["together", "apart", "one apart"])
def test_every_message_arrives_as_it_was_sent(where: str) -> None:
    """Growing and shrinking messages, more turns than slots, between ranks that do and do not share memory."""

    def work(rank: int) -> None:
        if where == "apart" or (where == "one apart" and rank == 2):
            del os.memfd_create
        ranks = own_group()
        assert isinstance(ranks, Processes)
        for turn in range(len(SIZES)):
            others = [r for r in range(3) if r != rank]
            sends = {r: m for r in others if len(m := message(rank, r, turn))}
            arriving = {r: torch.zeros(len(m), dtype=torch.uint8) for r in others if len(m := message(r, rank, turn))}
            ranks.exchange(sends, arriving)
            assert all(torch.equal(found, message(r, rank, turn)) for r, found in arriving.items())
        near = {0, 1, 2} if where == "together" else {0, 1} if where == "one apart" else set()
        assert set(neighbours_of(ranks)) == (near - {rank} if rank in near else set())

    assert ended(world(3, work)) == [0, 0, 0]


def test_what_is_not_the_memory_of_a_rank_is_not_opened(tmp_path: Path) -> None:
    """A process of another host may have the number of one here, and anything behind that descriptor: a pipe would block."""
    reader, writer = os.pipe()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    other = os.memfd_create(NAME)
    os.write(other, bytes(4096))
    for descriptor in (reader, file, other, 10**6):
        told = b"".join(n.to_bytes(8, "little") for n in (os.getpid(), descriptor)) + b"token of 16 byte"
        found = Neighbours(0, lambda mine, told=told: [mine, told if len(mine) > 2 else b"\1\1"])
        assert not found.peers
    for descriptor in (reader, writer, file, other):
        os.close(descriptor)


def test_nothing_stays_open_when_ranks_are_gone() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = Neighbours(0, lambda mine: [mine])
    found.put({})
    del found
    assert len(list(Path("/proc/self/fd").iterdir())) == before
