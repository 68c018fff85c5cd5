"""How far off collectives and transfers are to be expected, from the residuals of the fit.

A message is bound by latency where more than half of its time does not grow with its size, by bandwidth where less than a tenth
does, and in transition between the two.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels import fitted as tables
from costmodels.prediction import Bools, Floats

REGIMES = ("latency", "transition", "bandwidth")
BOUNDS = (0.5, 0.1)
"""Shares of the time that does not grow with size between the regimes."""
ALIKE = {"broadcast": "all_gather", "barrier": "all_reduce"}
"""Ops that nobody measured, and the one whose bands they take."""


def regime(share: Floats | float) -> NDArray[np.int64]:
    """Position in `REGIMES` of messages of which `share` of the time does not grow with size."""
    return np.asarray(np.less(share, BOUNDS[0]).astype(np.int64) + np.less(share, BOUNDS[1]))


def key(op: str, away: bool) -> str:
    """Name of a band: the op, inside a host or between hosts."""
    return f"{ALIKE.get(op, op)} {'between' if away else 'inside'}"


def errors(
    op: NDArray[np.str_], away: Bools, share: Floats, unseen: Bools, found: Mapping[str, Any] | None = None
) -> Floats:
    """(rows,) relative errors that four of five measurements stay within; NaN where the op is unknown."""
    bands = (tables.load("collectives") if found is None else found)["error"]
    out, at = np.full(len(op), np.nan), regime(np.nan_to_num(share))
    for kind in np.unique(op[op != ""]).tolist():
        for far in (False, True):
            for band, missing in (("seen", False), ("unseen", True)):
                here = (op == kind) & (away == far) & (unseen == missing)
                out[here] = np.asarray(_band(bands[band], kind, far))[at[here]]
    return out


def error_of(kind: str, share: float, *, away: bool, unseen: bool) -> float:
    """As `errors`, of one message."""
    bands = tables.load("collectives")["error"]["unseen" if unseen else "seen"]
    return float(_band(bands, kind, away)[int(regime(share))])


def _band(bands: Mapping[str, Any], kind: str, away: bool) -> list[float]:
    return list(bands.get(key(kind, away)) or bands["all between" if away else "all inside"])
