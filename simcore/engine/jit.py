"""Machine code for the inner loops of the engine, compiled once and kept on disk beside the source.

Only the engine imports this: loading numba takes a quarter of a second, compiling some seconds the first time.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`numba.njit` with a cache on disk; `compiled(f).py_func` is the plain Python function."""
    return cast(F, numba.njit(cache=True)(function))
