"""Tensors as plain bytes, and the warm buffer into which an asynchronous save copies."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import get_ident

import torch

from real.checkpoint.snapshot import gathered, kernel_takes
from simcore.checkpoint.boxes import Box

ALIGN_B = 64
"""Of shards in a file and in a buffer: a multiple of every item and a cache line."""


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    flat = tensor.reshape(-1)
    if flat.stride() != (1,):  # a single element counts as contiguous whatever its stride says
        flat = flat.as_strided(flat.shape, (1,))
    return memoryview(flat.view(torch.uint8).numpy())


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether `bytes_of` can be used as it is."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def part_of(data: torch.Tensor, held: Box, box: Box) -> torch.Tensor:
    """The view of `box` in `data`, which holds `held`."""
    return data[box.within(held).slices] if box.lengths else data


@dataclass(frozen=True, slots=True)
class ToWrite:
    """A shard's row in the plan, a function that gives its bytes when they are needed, and their xxh3 where it is known already."""

    row: int
    data: Callable[[], memoryview]
    checksum: int | None = None


def direct(rows: Sequence[tuple[int, torch.Tensor]]) -> list[ToWrite]:
    """Bytes straight from the tensors, copied first only where they are strided or on a device."""
    return [ToWrite(row, partial(_plain_bytes, view)) for row, view in rows]


def _plain_bytes(view: torch.Tensor) -> memoryview:
    return bytes_of(view if is_plain(view) else view.cpu().contiguous())


def is_on_gpu(tensor: torch.Tensor) -> bool:
    """Whether a copy of it runs beside the host."""
    return bool(tensor.is_cuda)


class Scratch:
    """Buffers that are used again and again under a key; each thread has its own."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, Hashable], torch.Tensor] = {}

    def get(self, key: Hashable, nbytes: int) -> torch.Tensor:
        """`nbytes` bytes; what they held under the same key is gone."""
        found = self._buffers.get((get_ident(), key))
        if found is None or len(found) < nbytes:
            found = self._buffers[get_ident(), key] = torch.empty(nbytes, dtype=torch.uint8)
        return found[:nbytes]


class WarmBuffer:
    """Memory that is kept from save to save, so that a copy meets no page fault; pinned where tensors are on a GPU."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.copied_by = ""
        """What the last copy was made by, for reports."""

    def copy(self, rows: Sequence[tuple[int, torch.Tensor]]) -> list[ToWrite]:
        """Copy the tensors; afterwards they may change. The buffer belongs to the result until that is written."""
        on_gpu = [r for r in rows if is_on_gpu(r[1])]
        rows = [*on_gpu, *(r for r in rows if not is_on_gpu(r[1]))]
        sizes = [view.numel() * view.element_size() for _, view in rows]
        starts, total = [], 0
        for size in sizes:
            starts.append(total)
            total += -(-size // ALIGN_B) * ALIGN_B
        self._reserve(total, pinned=bool(on_gpu))
        gpu_views = [view for _, view in on_gpu]
        by_kernel = bool(on_gpu) and kernel_takes(gpu_views)
        checksums = gathered(gpu_views, self._memory) if by_kernel else []
        self.copied_by = "triton kernel" if by_kernel else "torch from the GPU" if on_gpu else "torch on the CPU"
        copied = []
        for i, ((row, view), start, size) in enumerate(zip(rows, starts, sizes, strict=True)):
            target = self._memory[start : start + size]
            if i >= len(checksums):
                target.view(view.dtype).view(view.shape).copy_(view, non_blocking=is_on_gpu(view))
            copied.append(ToWrite(row, partial(bytes_of, target), checksums[i] if i < len(checksums) else None))
        if on_gpu:
            torch.cuda.synchronize()
        return copied

    def _reserve(self, nbytes: int, *, pinned: bool) -> None:
        if self._memory.numel() < nbytes or (pinned and not self._memory.is_pinned()):
            self._memory = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
