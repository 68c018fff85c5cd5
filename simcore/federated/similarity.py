"""The experts whose gate vectors point in the most similar directions, for each expert, among all experts of all clients.

Cosines are compared in blocks of rows, first in single precision with a margin for its rounding, and those that pass anew in double
precision, so that the result is that of double precision at the price of single.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcore.errors import InputError, Problem
from simcore.federated.clusters import Groups, divided

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

EQUAL = 1e-9
"""Cosines that differ by less are equal: sums of products in another order differ in their last digits."""

BLOCK = 2**22
"""Cosines that are held at a time: 16 MiB in single precision, which caches hold in part."""

DEALT = 64
"""Columns of a block at most, of which the largest cosine is found first."""

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

    The row itself counts and is always kept. At most `block` cosines are held at a time. Equations (8) and (9). Rows that lie in
    groups are compared within theirs and with the groups that are near enough; the result is the same.
    """
    n = len(rows)
    count = min(count, n)
    single = rows.astype(np.float32)
    margin = 4 * (rows.shape[1] + 8) * float(np.finfo(np.float32).eps)
    groups = divided(single, 2 * margin)
    single = single[groups.order]
    found: list[tuple[Ints, Ints, Floats]] = []
    pairs = 0
    for part, row, column in _pairs(single, groups, count, margin, max(block, 1)):
        pairs += len(row)
        if pairs > MOST:
            given = f"more than {MOST:,} pairs of experts that are equally alike"
            raise InputError("gates that are nearly all alike", [Problem("gates", given, "gates that differ")])
        found.append(_kept(rows, groups.order[part], row, groups.order[column], count))
    row, column, cosine = (np.concatenate(c) for c in zip(*found, strict=True))
    order = np.lexsort((column, row))
    ptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))]).astype(np.int64)
    return Neighbours(ptr, column[order], cosine[order])


def _pairs(
    single: Singles, groups: Groups, count: int, margin: float, block: int
) -> Iterator[tuple[slice, Ints, Ints]]:
    """Parts of `single`, rows in the order of `groups`, with pairs (row within the part, column) that may be of its largest."""
    from simcore.federated.selection import candidates, least

    for g in range(len(groups.ptr) - 1):
        begin, end = groups.ptr[g], groups.ptr[g + 1]
        for part in _parts(begin, end, block // (end - begin)):
            own = _compared(single[part], single[begin:end], count)
            at_least = least(own.largest, count, margin)
            near = groups.near(part, at_least)
            if len(near) == 1:  # its own
                row, column = candidates(own.cosines, own.largest, end - begin, count, margin)
                yield part, row, column + begin
                continue
            columns = groups.places(near)
            others = single[columns]
            for piece in _parts(part.start, part.stop, block // len(columns)):
                found = _compared(single[piece], others, count)
                row, column = candidates(found.cosines, found.largest, len(columns), count, margin)
                yield piece, row, columns[column]


def _parts(begin: int, end: int, step: int) -> Iterator[slice]:
    """From `begin` to `end` by `step`, at least 1."""
    for first in range(begin, end, max(step, 1)):
        yield slice(first, min(first + max(step, 1), end))


class Compared(NamedTuple):
    """`cosines` (rows, blocks * size) have column c in block c % blocks; `largest` (rows, blocks) are the largest of each."""

    cosines: Singles
    largest: Singles


def _compared(rows: Singles, columns: Singles, count: int) -> Compared:
    """Cosines of `rows` with `columns`; those of the columns that fill up the last blocks are below all others."""
    n = len(columns)
    size = min(max(n // (16 * count), 1), DEALT)
    blocks = -(-n // size)
    filled = np.zeros((rows.shape[1], blocks * size), dtype=np.float32)
    filled[:, :n] = columns.T
    cosines = rows @ filled
    cosines[:, n:] = -2.0
    return Compared(cosines, cosines.reshape(len(rows), size, blocks).max(axis=1))


def _kept(rows: Floats, part: Ints, row: Ints, column: Ints, count: int) -> tuple[Ints, Ints, Floats]:
    """Of the candidates of the rows `part`, given by their places in it, those that reach the `count`-th largest cosine, in double
    precision."""
    place, row = row, part[row]
    cosine = _cosines(rows, row, column)
    cosine[row == column] = 1.0
    order = np.lexsort((-cosine, place))
    starts = np.searchsorted(place, np.arange(len(part)))
    least = cosine[order[starts + count - 1]]
    keep = (cosine >= least[place] - EQUAL) | (row == column)
    return row[keep], column[keep], cosine[keep]


def _cosines(rows: Floats, row: Ints, column: Ints, step: int = 2**18) -> Floats:
    """(pairs,) of rows of length 1."""
    out = np.empty(len(row))
    for i in range(0, len(row), step):
        out[i : i + step] = np.einsum("ij,ij->i", rows[row[i : i + step]], rows[column[i : i + step]])
    return out
