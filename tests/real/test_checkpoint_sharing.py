"""Ranks of one host hand on what they read through memory that they share, others through the network: with the same result."""

import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from real.checkpoint.checkpointer import Checkpointer, load
from real.checkpoint.errors import CheckpointError, CorruptCheckpoint
from real.checkpoint.leaves import Part
from real.checkpoint.ranks import HEADS_B, Processes, own_group
from real.checkpoint.sharing import NAME, Neighbours
from real.checkpoint.storage import Local
from simcore.checkpoint.boxes import chunk
from tests.real.checkpoint_processes import ended, world
from tests.real.checkpoint_world import Threads, bits, in_world, random_tensor

HEAD = HEADS_B // 3
"""Bytes of a payload that travel with its size, among three ranks."""
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


@pytest.mark.parametrize(
    "sizes", [(0, 0, 0), (1, 0, 5), (HEAD, HEAD - 1, 0), (HEAD + 1, 2, HEAD), (0, 5 * HEAD, 3 * HEAD)]
)
def test_payloads_of_any_length_reach_everybody(sizes: tuple[int, ...]) -> None:
    """With their sizes as far as they fit there, and with a second message where one is longer."""
    told = [random.Random(rank).randbytes(size) for rank, size in enumerate(sizes)]

    def work(rank: int) -> None:
        ranks, calls, gather = own_group(), [], dist.all_gather
        dist.all_gather = lambda *a, **k: (calls.append(1), gather(*a, **k))
        assert ranks.all_gather(told[rank]) == told
        assert len(calls) == (2 if max(sizes) > HEAD else 1)

    assert ended(world(3, work)) == [0, 0, 0]


def test_what_is_not_the_memory_of_a_rank_is_not_opened(tmp_path: Path) -> None:
    """A process of another host may have the number of one here, and anything behind that descriptor: a pipe would block."""
    reader, writer = os.pipe()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    other = os.memfd_create(NAME)
    os.write(other, bytes(4096))
    for descriptor in (reader, file, other, 10**6):
        told = b"".join(n.to_bytes(8, "little") for n in (os.getpid(), descriptor)) + b"token of 16 byte"

        def all_gather(mine: bytes, told: bytes = told) -> list[bytes]:
            return [mine, told if len(mine) > 2 else b"\1\1"]

        assert not Neighbours(0, all_gather).peers
    for descriptor in (reader, writer, file, other):
        os.close(descriptor)


def test_nothing_stays_open_when_ranks_are_gone() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = Neighbours(0, lambda mine: [mine])
    found.put({})
    del found
    assert len(list(Path("/proc/self/fd").iterdir())) == before


SHAPES = {"a": (7, 5), "b": (2, 40), "c": (4, 3, 4), "d": (1, 30), "e": (6, 2)}
DTYPES = {"a": torch.float32, "b": torch.int64, "c": torch.bfloat16, "d": torch.uint8, "e": torch.float64}


def wholes() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: random_tensor(shape, DTYPES[n], generator) for n, shape in SHAPES.items()}


def held(tensors: Mapping[str, torch.Tensor], rank: int, size: int, dim: int) -> dict[str, Part]:
    """Rows (dim 0) or columns (dim 1) of a rank; some ranks have none of a small tensor."""
    found = {}
    for name, tensor in tensors.items():
        start, length = chunk(tensor.shape[dim], size, rank)
        offsets = tuple(start if d == dim else 0 for d in range(tensor.dim()))
        found[name] = Part(tensor.narrow(dim, start, length).clone(), tuple(tensor.shape), offsets)
    return found


@pytest.mark.parametrize("block_B", [1, 16, 50, 200])
def test_blocks_rounds_and_lanes_of_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_B: int) -> None:
    """Shards of several blocks, in several rounds, more shards than lanes; then one byte is flipped."""
    monkeypatch.setattr(Local, "block_B", block_B)

    def save_part(rank: int, ranks: Threads, background: Threads) -> None:
        checkpointer = Checkpointer(tmp_path, ranks=ranks, background=background, largest_shard_B=100)
        checkpointer.save({"model": held(wholes(), rank, 3, 0)}, step=1)

    def load_part(rank: int, ranks: Threads, background: Threads) -> int:
        zeros = {n: torch.zeros_like(t) for n, t in wholes().items()}
        target = held(zeros, rank, 2, 1)
        loaded = Checkpointer(tmp_path, ranks=ranks, background=background, threads=2).load({"model": target})
        for name, part in held(wholes(), rank, 2, 1).items():
            assert bits(target[name].data) == bits(part.data), name
        return loaded.read_B

    in_world(3, save_part)
    assert sum(in_world(2, load_part)) == sum(t.numel() * t.element_size() for t in wholes().values())
    file = tmp_path / "step-00000001" / "model-000001.bin"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptCheckpoint, match=r"model-000001\.bin, shard model/b\[1, 30\]"):
        load(tmp_path, {"model": wholes()})

    def damaged_part(rank: int, ranks: Threads, background: Threads) -> None:
        with pytest.raises(CheckpointError, match=r"model-000001\.bin, shard model/b\[1, 30\]"):
            load_part(rank, ranks, background)

    in_world(2, damaged_part)


@pytest.mark.parametrize("block_B", [16, 200])
def test_only_rounds_in_which_something_is_handed_on_wait_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_B: int
) -> None:
    """A model that both ranks want whole, and an optimizer of which each wants what it reads: one role is exchanged."""
    monkeypatch.setattr(Local, "block_B", block_B)
    model = {n: wholes()[n] for n in "ab"}
    large = torch.arange(4000, dtype=torch.int32).view(100, 40)
    exchanges = [0, 0]

    class Counting(Threads):
        def exchange(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
            exchanges[self.rank] += 1
            super().exchange(sends, receives)

    def state(rank: int, filled: bool) -> dict[str, dict[str, object]]:
        whole = {n: t.clone() if filled else torch.zeros_like(t) for n, t in model.items()}
        rows = held({"large": large if filled else torch.zeros_like(large)}, rank, 2, 0)
        return {"model": dict(whole), "optimizer": dict(rows)}

    def save_and_load(rank: int, ranks: Threads, background: Threads) -> None:
        Checkpointer(tmp_path, ranks=ranks, background=background).save(state(rank, filled=True), step=1)
        target = state(rank, filled=False)
        counting = Counting(ranks.meeting, rank)
        Checkpointer(tmp_path, ranks=counting, background=background).load(target)
        for role, tensors in state(rank, filled=True).items():
            for name, wanted in tensors.items():
                pair = [getattr(one, "data", one) for one in (target[role][name], wanted)]
                assert bits(pair[0]) == bits(pair[1]), name

    in_world(2, save_and_load)
    each = sum(t.numel() * t.element_size() for t in model.values())
    assert exchanges[0] == exchanges[1]
    assert 0 < exchanges[0] <= each // (4 * block_B) + 2 < large.numel() * 4 // 2 // (4 * block_B)
