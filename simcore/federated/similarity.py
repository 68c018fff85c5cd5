"""The experts whose gate vectors point in the most similar directions, for each expert, among all experts of all clients.

Cosines are compared in blocks of rows, first in single precision with a margin for its rounding, and those that pass anew in double
precision, so that the result is that of double precision at the price of single.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcore.errors import InputError, Problem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

EQUAL = 1e-9
"""Cosines that differ by less are equal: sums of products in another order differ in their last digits."""

BLOCK = 2**22
"""Cosines that are held at a time: 16 MiB in single precision, which caches hold in part."""

DEALT = 64
"""Columns of a block, of which the largest cosine is found first."""

MOST = 2**27
"""Pairs that are kept at most; more of them means gates that are nearly all alike."""


class Neighbours(NamedTuple):
    """Row i has the experts `column[ptr[i] : ptr[i + 1]]`, ascending, and their cosines with expert i."""

    ptr: Ints
    column: Ints
    cosine: Floats


def unit_rows(gates: NDArray[np.floating]) -> Floats:
    """Gate vectors (clients, experts, width) as rows (clients * experts, width) of length 1.

    Raises `InputError` that names every client one of whose vectors is zero, infinite or NaN: it has no direction.
    """
    if gates.ndim != 3 or 0 in gates.shape:
        raise InputError(
            "gate vectors of no use", [Problem("gates", f"shape {gates.shape}", "(clients, experts, width)")]
        )
    rows = gates.astype(np.float64).reshape(-1, gates.shape[2])
    largest = np.abs(rows).max(axis=1)
    useless = ~(np.isfinite(largest) & (largest > 0))
    if useless.any():
        clients = np.unique(np.flatnonzero(useless) // gates.shape[1]).tolist()
        given = f"no direction in a gate of client {', '.join(map(str, clients[:20]))}"
        raise InputError("gate vectors of no use", [Problem("gates", given, "finite numbers, not all of them zero")])
    rows = rows / largest[:, None]  # squares of what is very large or small stay finite
    scaled: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def nearest(rows: Floats, count: int, block: int = BLOCK) -> Neighbours:
    """For each of `rows` (n, width), of length 1, every row whose cosine reaches the `count`-th largest; ties are kept.

    The row itself counts and is always kept. At most `block` cosines are held at a time. Equations (8) and (9).
    """
    n = len(rows)
    count = min(count, n)
    single = rows.astype(np.float32)
    blocks = -(-n // DEALT)
    padded = np.vstack([single, np.broadcast_to(single[:1], (blocks * DEALT - n, rows.shape[1]))]).T.copy()
    margin = 4 * (rows.shape[1] + 8) * float(np.finfo(np.float32).eps)
    step = max(block // n, 1)
    found: list[tuple[Ints, Ints, Floats]] = []
    pairs = 0
    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        row, column = _candidates(single[part] @ padded, n, count, margin)
        pairs += len(row)
        if pairs > MOST:
            given = f"more than {MOST:,} pairs of experts that are equally alike"
            raise InputError("gates that are nearly all alike", [Problem("gates", given, "gates that differ")])
        found.append(_kept(rows, row + first, column, count, part))
    row, column, cosine = (np.concatenate(c) for c in zip(*found, strict=True))
    ptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))]).astype(np.int64)
    return Neighbours(ptr, column, cosine)


def _candidates(cosines: Singles, columns: int, count: int, margin: float) -> tuple[Ints, Ints]:
    """Pairs (row, column) that may belong to the largest `count` of their row, in order; `margin` is twice the rounding error."""
    from simcore.federated.selection import candidates

    largest = cosines.reshape(len(cosines), DEALT, -1).max(axis=1)
    row, column = candidates(cosines, largest, columns, count, margin)
    order = np.lexsort((column, row))
    return row[order], column[order]


def _kept(rows: Floats, row: Ints, column: Ints, count: int, part: slice) -> tuple[Ints, Ints, Floats]:
    """Of the candidates of a block of rows those that reach the `count`-th largest cosine, in double precision."""
    cosine = _cosines(rows, row, column)
    cosine[row == column] = 1.0
    order = np.lexsort((-cosine, row))
    starts = np.searchsorted(row, np.arange(part.start, part.stop))
    least = cosine[order[starts + count - 1]]
    keep = (cosine >= least[row - part.start] - EQUAL) | (row == column)
    return row[keep], column[keep], cosine[keep]


def _cosines(rows: Floats, row: Ints, column: Ints, step: int = 2**18) -> Floats:
    """(pairs,) of rows of length 1."""
    out = np.empty(len(row))
    for i in range(0, len(row), step):
        out[i : i + step] = np.einsum("ij,ij->i", rows[row[i : i + step]], rows[column[i : i + step]])
    return out
