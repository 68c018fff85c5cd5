"""Ranks as threads of one process, and states of many ranks cut from one set of whole tensors."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from real.checkpoint.leaves import FlatSlice, Part
from real.checkpoint.memory import bytes_of
from simcore.checkpoint.layouts import Mesh, Placement


class Meeting:
    """What the threads of one world share."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=120)
        self.slots: list[Any] = [None] * size


class Threads:
    """`real.checkpoint.ranks.Ranks` between threads."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, meeting.size

    def all_gather(self, payload: bytes) -> list[bytes]:
        self.meeting.slots[self.rank] = payload
        self.meeting.barrier.wait()
        found = list(self.meeting.slots)
        self.meeting.barrier.wait()
        return found

    def exchange(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        self.meeting.slots[self.rank] = sends
        self.meeting.barrier.wait()
        for source, target in receives.items():
            target.copy_(self.meeting.slots[source][self.rank])
        self.meeting.barrier.wait()


def in_world(size: int, work: Callable[[int, Threads, Threads], Any]) -> list[Any]:
    """`work(rank, ranks, background)` on `size` threads; the first error is raised."""
    foreground, background = Meeting(size), Meeting(size)

    def one(rank: int) -> Any:
        try:
            return work(rank, Threads(foreground, rank), Threads(background, rank))
        except threading.BrokenBarrierError:
            return None
        except BaseException:
            foreground.barrier.abort()
            background.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
        return [future.result() for future in futures]


def cut(
    wholes: Mapping[str, torch.Tensor], placements: Mapping[str, Placement], mesh: Mesh, rank: int
) -> dict[str, Any]:
    """What `rank` holds of whole tensors, as copies: `Part`s, `FlatSlice`s or plain tensors, nothing of other stages.

    Written without the planner's own functions, which it is there to test.
    """
    t, d, stage = rank % mesh.tp, rank // mesh.tp % mesh.dp, rank // mesh.tp // mesh.dp
    held: dict[str, Any] = {}
    for name, value in wholes.items():
        place = placements[name]
        if place.stage not in (None, stage):
            continue
        part, offsets = value, [0] * value.dim()
        if place.tp_dim is not None:
            part, offsets[place.tp_dim] = _chunk(part, mesh.tp, t, place.tp_dim)
        if place.dp == "shard" and value.dim():
            part, more = _chunk(part, mesh.dp, d, 0)
            offsets[0] += more
        if place.dp == "flat":
            each = -(-part.numel() // mesh.dp)
            start = min(d * each, part.numel())
            piece = part.reshape(-1)[start : start + each].clone()
            held[name] = FlatSlice(piece, tuple(value.shape), start, tuple(offsets), tuple(part.shape))
        elif part.shape == value.shape and place.tp_dim is None:
            held[name] = part.clone()
        else:
            held[name] = Part(part.clone(), tuple(value.shape), tuple(offsets))
    return held


def _chunk(value: torch.Tensor, parts: int, index: int, dim: int) -> tuple[torch.Tensor, int]:
    chunks = list(value.chunk(parts, dim)) if value.shape[dim] else [value]
    start = sum(c.shape[dim] for c in chunks[:index])
    return (chunks[index] if index < len(chunks) else value.narrow(dim, value.shape[dim], 0)), min(
        start, value.shape[dim]
    )


def memory(leaf: Any) -> torch.Tensor:
    """The local tensor of a leaf."""
    return leaf.data if isinstance(leaf, Part | FlatSlice) else leaf


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor: what "bit-exact" compares."""
    return bytes(bytes_of(tensor.detach().resolve_conj().contiguous()))


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Random bytes as a tensor: every bit pattern, also of NaN; booleans are 0 or 1."""
    count = torch.empty(shape, dtype=dtype).numel()
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(
        0, 256, (count * torch.empty(0, dtype=dtype).element_size(),), dtype=torch.uint8, generator=generator
    )
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
