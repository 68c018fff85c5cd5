"""Numbers of each row of a table that may belong to its largest; compiled, and loaded only where it is used.

Columns are dealt into blocks whose largest numbers are known. The k-th largest of these is not above that of the whole row,
so only blocks that reach it have to be read.
"""

import numpy as np
from numpy.typing import NDArray

from simcore.engine.jit import compiled

Ints = NDArray[np.int64]
Singles = NDArray[np.float32]


@compiled
def kth_largest(values: Singles, k: int) -> float:
    """The `k`-th largest of at least `k` numbers."""
    best = np.full(k, -np.inf, dtype=np.float32)  # ascending
    for value in values:
        if value > best[0]:
            j = 0
            while j + 1 < k and best[j + 1] < value:
                best[j] = best[j + 1]
                j += 1
            best[j] = value
    return float(best[0])


@compiled
def least(largest: Singles, k: int, margin: float) -> Singles:
    """(rows,) what the `k`-th largest number of each row reaches, less `margin`, from the maxima of its blocks (rows, blocks)."""
    out = np.full(len(largest), -1.0, dtype=np.float32)
    if largest.shape[1] >= k:
        for i in range(len(largest)):
            out[i] = max(kth_largest(largest[i], k) - margin, -1.0)
    return out


@compiled
def candidates(table: Singles, largest: Singles, columns: int, k: int, margin: float) -> tuple[Ints, Ints]:
    """Rows and columns of the numbers that come within `margin` of the `k`-th largest of their row, in no order within a row.

    `table` (rows, blocks * size) has column c in block c % blocks; columns from `columns` on are padding. `largest` (rows, blocks)
    are the maxima of blocks.
    """
    blocks = largest.shape[1]
    size = table.shape[1] // blocks
    column = np.empty(4 * k * len(table) + table.shape[1], dtype=np.int64)
    value = np.empty(len(column), dtype=np.float32)
    count = np.zeros(len(table) + 1, dtype=np.int64)
    total = 0
    for i in range(len(table)):
        lowest = kth_largest(largest[i], k) - margin if blocks >= k else -np.inf
        if total + table.shape[1] > len(column):
            column = np.concatenate((column, np.empty(len(column), dtype=np.int64)))
            value = np.concatenate((value, np.empty(len(value), dtype=np.float32)))
        first = total
        for b in range(blocks):
            if largest[i, b] < lowest:
                continue
            for t in range(size):
                c = t * blocks + b
                if c < columns and table[i, c] >= lowest:
                    column[total], value[total] = c, table[i, c]
                    total += 1
        lowest = kth_largest(value[first:total], k) - margin
        kept = first
        for j in range(first, total):
            if value[j] >= lowest:
                column[kept], value[kept] = column[j], value[j]
                kept += 1
        total = kept
        count[i + 1] = total
    row = np.empty(total, dtype=np.int64)
    for i in range(len(table)):
        row[count[i] : count[i + 1]] = i
    return row, column[:total].copy()
