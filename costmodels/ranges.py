"""Which sizes lie beyond those that a fit has seen."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from costmodels.prediction import Bools, Floats

OUTSIDE = 2.0
"""Sizes beyond the measured range times this are extrapolated."""


def outside(fitted: Mapping[str, Any], kind: str, **sizes: Floats) -> Bools:
    """Which sizes (arrays that broadcast) lie beyond those measured of `kind` on any device."""
    ranges = fitted["range"].get(kind, {})
    found = np.zeros((), dtype=np.bool_)
    for name, size in sizes.items():
        low, high = ranges.get(name, (np.inf, 0.0))
        found = found | (size < low / OUTSIDE) | (size > high * OUTSIDE)
    return np.asarray(found, dtype=np.bool_)
