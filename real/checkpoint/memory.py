"""Tensors as plain bytes, and the warm buffer into which an asynchronous save copies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from simcore.checkpoint.boxes import Box

ALIGN_B = 64
"""Of shards in a file and in a buffer: a multiple of every item and a cache line."""


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether `bytes_of` can be used as it is."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def part_of(data: torch.Tensor, held: Box, box: Box) -> torch.Tensor:
    """The view of `box` in `data`, which holds `held`."""
    return data[box.within(held).slices] if box.lengths else data


@dataclass(frozen=True, slots=True)
class ToWrite:
    """A shard's row in the plan and a function that gives its bytes when they are needed."""

    row: int
    data: Callable[[], memoryview]


def direct(rows: Sequence[tuple[int, torch.Tensor]]) -> list[ToWrite]:
    """Bytes straight from the tensors, copied first only where they are strided or on a device."""
    return [ToWrite(row, partial(_plain_bytes, view)) for row, view in rows]


def _plain_bytes(view: torch.Tensor) -> memoryview:
    return bytes_of(view if is_plain(view) else view.cpu().contiguous())


class WarmBuffer:
    """Memory that is kept from save to save, so that a copy meets no page fault; pinned where tensors are on a GPU."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def copy(self, rows: Sequence[tuple[int, torch.Tensor]]) -> list[ToWrite]:
        """Copy the tensors; afterwards they may change. The buffer belongs to the result until that is written."""
        sizes = [view.numel() * view.element_size() for _, view in rows]
        starts, total = [], 0
        for size in sizes:
            starts.append(total)
            total += -(-size // ALIGN_B) * ALIGN_B
        on_gpu = any(view.is_cuda for _, view in rows)
        self._reserve(total, pinned=on_gpu)
        copied = []
        for (row, view), start, size in zip(rows, starts, sizes, strict=True):
            target = self._memory[start : start + size]
            target.view(view.dtype).view(view.shape).copy_(view, non_blocking=on_gpu)
            copied.append(ToWrite(row, partial(bytes_of, target)))
        if on_gpu:
            torch.cuda.synchronize()
        return copied

    def _reserve(self, nbytes: int, *, pinned: bool) -> None:
        if self._memory.numel() < nbytes or (pinned and not self._memory.is_pinned()):
            self._memory = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
