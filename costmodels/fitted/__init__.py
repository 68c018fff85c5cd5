"""Fitted tables: what `make fit` found in published measurements, as data, each with where it came from.

`load("gemm")` is `costmodels/fitted/gemm.yaml`: `provenance` (files, their digests, rows, licences), `parameters`, and `error`,
the residuals that became error bands.
"""

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml


@lru_cache(maxsize=32)
def load(name: str) -> Mapping[str, Any]:
    """The fitted table of that name, read once."""
    text = files(__package__).joinpath(f"{name}.yaml").read_text()
    found: Mapping[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return found
