"""Tables of published measurements that kernels and links are enough to predict: one file for each, found by its name.

`costmodels/tables/gemm.py` holds `TABLE`, a `TableSpec`: which columns a file must have, how its rows are predicted, and what plain
roofline says of them. `costmodels/fit/gemm.py` fits what the prediction needs into `costmodels/fitted/gemm.yaml`.
"""

import pkgutil


def names() -> list[str]:
    """Every table, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "table")
