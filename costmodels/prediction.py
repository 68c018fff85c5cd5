"""Many costs at once, each with how far to trust it: what vectorised models return."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Arrays of one shape: seconds, NaN where the model has nothing to say; the relative error to expect as a fraction (four of
    five measurements are closer), NaN where unknown; and whether device or sizes lie outside of what was fitted."""

    seconds: Floats
    error: Floats
    extrapolated: Bools

    @classmethod
    def plain(cls, seconds: Floats) -> "Prediction":
        """Seconds of which nothing else is known."""
        return cls(
            seconds=seconds, error=np.full(seconds.shape, np.nan), extrapolated=np.ones(seconds.shape, dtype=np.bool_)
        )
