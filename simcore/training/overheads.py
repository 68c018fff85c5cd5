"""What whole training jobs need beyond their kernels and collectives: a few numbers, fitted to published iterations."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


ARCHITECTURES = ("ampere", "hopper")
"""Of the devices whose published iterations are fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Factors on seconds that kernels take by themselves, and what comes on top. The defaults add nothing.

    Long jobs hold lower clocks than benchmarks of single kernels, and their kernels meet cold caches: `products`, `narrow` ones,
    `attention` and `streaming` are factors for each kind. `kernel_s` is added for each kernel that is launched, `microbatch_s` for
    each microbatch and `step_s` for each iteration (host code between kernels, losses, norms of gradients). `exposed` is the
    share of replicas' communication that does not hide although it could. `spread` is how much longer the slowest of n ranks
    takes, for each doubling of n beyond one host.
    """

    products: float = 1.0
    narrow: float = 1.0
    attention: float = 1.0
    streaming: float = 1.0
    kernel_s: float = 0.0
    microbatch_s: float = 0.0
    step_s: float = 0.0
    exposed: float = 0.0
    spread: float = 0.0

    @classmethod
    def read(cls, parameters: Mapping[str, Any]) -> "Overheads":
        """From plain data; other keys are passed over."""
        return cls(**{f.name: float(parameters[f.name]) for f in fields(cls) if f.name in parameters})

    def slowest(self, n_ranks: int) -> float:
        """Factor on an iteration of so many ranks."""
        return 1.0 + self.spread * max(float(np.log2(n_ranks / 8)), 0.0)


NONE = Overheads()
