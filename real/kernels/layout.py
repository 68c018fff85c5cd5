"""How tensors lie in memory: elementwise kernels walk memory in order, whatever the order of the axes."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """Element number i in memory belongs to channel (i // inner) % count."""

    count: int
    inner: int


def dense(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if its elements fill a stretch of memory without gaps (contiguous, transposed, channels-last); a
    contiguous copy otherwise."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def channels_of(x: torch.Tensor, axis: int | None) -> Channels:
    """Where the channels along `axis` of a dense tensor lie; one channel for None."""
    if axis is None:
        return Channels(count=1, inner=1)
    return Channels(count=x.shape[axis], inner=max(x.stride(axis), 1))
