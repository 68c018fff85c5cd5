"""Directions in groups that lie apart, so that the nearest of a direction are looked for in few of them and none is missed.

Chords between unit vectors obey the triangle inequality: what belongs to a group lies no nearer to a vector than the group's centre
does, less the group's radius. Groups that this puts farther away than enough others need not be looked at.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Singles = NDArray[np.float32]
Bools = NDArray[np.bool_]

SAMPLE = 4096
"""Rows among which centres are looked for."""

EACH, MOST = 32, 256
"""Rows of a group at least, on average; groups at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """Group g has the rows `order[ptr[g] : ptr[g + 1]]`; `apart` (rows in that order, groups) are squared chords to centres.

    `radius` (groups,) is the chord from a centre to its farthest row. Chords are right but for `error` in their squares.
    """

    order: Ints
    ptr: Ints
    apart: Singles
    radius: Singles
    error: float

    def near(self, part: slice, least: Singles) -> Ints:
        """Groups that may hold a row whose cosine with row i of `part` (places in `order`) reaches `least[i]`, ascending."""
        reach = np.sqrt(np.maximum(2.0 - 2.0 * least, 0.0) + self.error)
        nearest = np.sqrt(np.maximum(self.apart[part] - self.error, 0.0)) - self.radius
        return np.flatnonzero((nearest <= reach[:, None]).any(axis=0))

    def places(self, groups: Ints) -> Ints:
        """Places in `order` of all rows of `groups`."""
        return np.concatenate([np.arange(self.ptr[g], self.ptr[g + 1]) for g in groups.tolist()])


def divided(rows: Singles, error: float) -> Groups:
    """Groups of `rows` (n, width) of length 1; `error` is that of a squared chord."""
    group = _nearest_centre(rows, _centres(rows[:: max(len(rows) // SAMPLE, 1)], min(max(len(rows) // EACH, 1), MOST)))
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    sizes = sizes[sizes > 0]
    ptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    means = np.add.reduceat(rows[order], ptr[:-1], axis=0) / sizes[:, None].astype(np.float32)
    apart = 1.0 + (means**2).sum(axis=1) - 2.0 * (rows[order] @ means.T)
    own = apart[np.arange(len(rows)), np.repeat(np.arange(len(sizes)), sizes)]
    radius = np.sqrt(np.maximum(np.maximum.reduceat(own, ptr[:-1]), 0.0) + error)
    return Groups(order=order, ptr=ptr, apart=apart, radius=radius, error=error)


def _nearest_centre(rows: Singles, centres: Singles) -> Ints:
    return np.asarray((rows @ centres.T).argmax(axis=1), dtype=np.int64)


def _centres(rows: Singles, most: int) -> Singles:
    """Rows that lie far apart: each is the one farthest from those before (Gonzalez 1985), up to where that distance falls most."""
    chosen, cosine = [0], rows @ rows[0]
    apart: list[float] = []  # of each but the first, squared chord to those before
    while len(chosen) <= min(most, len(rows) - 1):
        far = int(cosine.argmin())
        apart.append(max(2.0 - 2.0 * float(cosine[far]), 0.0))
        chosen.append(far)
        cosine = np.maximum(cosine, rows @ rows[far])
    if len(apart) < 2:
        return rows[:1]
    falls = np.array(apart[:-1]) / np.maximum(apart[1:], 1e-12)
    return rows[chosen[: int(falls.argmax()) + 2]]
