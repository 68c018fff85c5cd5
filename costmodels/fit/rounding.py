"""Numbers of a fit as they are written: six significant digits, so that a repeated fit gives the same file."""

from collections.abc import Mapping
from typing import Any


def rounded(value: Any) -> Any:
    """Plain data of the same structure with every float rounded to six significant digits."""
    if isinstance(value, Mapping):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
