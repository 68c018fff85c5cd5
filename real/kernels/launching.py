"""One launch of a Triton kernel as data: what `run` starts on a device is what `compile_ahead` compiles without one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

Argument = torch.Tensor | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A kernel, its grid, its arguments and what it is specialised for.

    `flops` is the arithmetic that the operands' shapes ask for (a multiply-add is two), not that of the tiles' padding.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    flops: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes to and from memory if every tensor moves once."""
        tensors = [a for a in self.arguments.values() if isinstance(a, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def run(self) -> None:
        """Start it on the device of its tensors (on the CPU under TRITON_INTERPRET=1)."""
        first = next(a for a in self.arguments.values() if isinstance(a, torch.Tensor))
        with torch.cuda.device_of(first):
            self.kernel[self.grid](
                **self.arguments, **self.constants, num_warps=self.num_warps, num_stages=self.num_stages
            )
