"""What the residuals of the fit of collectives say: error bands, and how far sources differ about the same thing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from costmodels.catalog import Catalog
from costmodels.collective_errors import REGIMES, key, regime
from costmodels.collective_rows import Rows, rows_of
from costmodels.prediction import Bools, Floats
from costmodels.specs import LinkSpec

if TYPE_CHECKING:
    import pandas as pd

WITHIN = 0.8
"""Share of residuals that a band holds."""
WARM = 5
"""Steps of a search that begins at the solution for one link more."""
FEWEST = 5
"""Cells below which a band is that of all ops."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows joined to quarter octaves: one row of `frame` each, `log_s` (cells,), `weight` (cells,)."""

    frame: "pd.DataFrame"
    rows: Rows
    log_s: Floats
    weight: Floats


class Model(Protocol):
    """What `costmodels.fit.collectives.Unknowns` has that bands need."""

    links: tuple[LinkSpec, ...]

    def times(self, rows: Rows, x: Floats) -> tuple[Floats, Floats]: ...


def uses(rows: Rows, link: int) -> Bools:
    """(rows,) whether bytes of a row cross that link."""
    near = (rows.near == link) & ((rows.n > rows.nodes) | (rows.far < 0))
    return np.asarray(near | (rows.far == link))


def bands(
    model: Model, cells: Cells, best: Floats, solve: Callable[[Any, Cells, Floats, Floats, int], Floats]
) -> dict[str, dict[str, list[float]]]:
    """Relative errors that four of five residuals stay within, by op and regime: `seen` of the fit itself, `unseen` of links
    left out of it one by one."""
    seen = _residuals(model, cells, best)
    unseen = np.full(len(seen[0]), np.nan)
    for link in range(len(model.links)):
        without = uses(cells.rows, link)
        x = solve(model, cells, np.where(without, 0.0, cells.weight), best, WARM)
        away, _ = _residuals(model, cells, x)
        unseen = np.where(without, np.fmax(unseen, away), unseen)
    known = _by_class(cells, *seen)
    new = _by_class(cells, unseen, seen[1])
    wider = {k: [max(a, b) for a, b in zip(v, known.get(k, v), strict=True)] for k, v in new.items()}
    return {"seen": known, "unseen": wider}


def _residuals(model: Model, cells: Cells, x: Floats) -> tuple[Floats, Floats]:
    """(cells,) relative errors and shares of the time that does not grow with size."""
    seconds, wait_s = model.times(cells.rows, x)
    return np.abs(seconds / np.exp(cells.log_s) - 1), wait_s / seconds


def _by_class(cells: Cells, away: Floats, share: Floats) -> dict[str, list[float]]:
    """Bands of every class that has enough cells, and of all ops together."""
    at, between = regime(share), cells.rows.far >= 0
    out: dict[str, list[float]] = {}
    for far, where in ((False, "inside"), (True, "between")):
        rows = (between == far) & ~np.isnan(away)
        every = [_band(away, cells.weight, rows & (at == r), _band(away, cells.weight, rows, 0.5)) for r in range(3)]
        out[f"all {where}"] = every
        for op in sorted(set(cells.rows.op[rows].tolist())):
            mine = rows & (cells.rows.op == op)
            out[key(op, far)] = [_band(away, cells.weight, mine & (at == r), every[r]) for r in range(len(REGIMES))]
    return out


def _band(away: Floats, weight: Floats, rows: Bools, otherwise: float) -> float:
    """Weighted quantile."""
    if rows.sum() < FEWEST:
        return otherwise
    order = np.argsort(away[rows], kind="stable")
    total = np.cumsum(weight[rows][order])
    found = away[rows][order][np.searchsorted(total, WITHIN * total[-1])]
    return float(f"{max(float(found), 0.01):.3g}")


def floors(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Mapping[str, float]]:
    """How far sources are apart that measured the same op of the same size over the same links, by op: the median of the largest
    time over the least, less one, of `cases`. No model that does not know the source comes closer than half of it."""
    import pandas as pd

    rows = rows_of(frame, catalog)
    names = np.array([x.name for x in rows.links] + ["none"])
    source = frame["source"].astype(str).str.replace("@.*", "", regex=True) if "source" in frame else "one"
    table = pd.DataFrame({
        "op": rows.op, "near": names[rows.near], "far": names[rows.far], "n": rows.n, "nodes": rows.nodes,
        "size": rows.nbytes.round(), "source": source, "s": frame["time_s"].to_numpy(),
    })[rows.known]  # fmt: skip
    place = ["op", "near", "far", "n", "nodes", "size"]
    each = (
        table.dropna(subset=["s"]).groupby([*place, "source"])["s"].median().groupby(place).agg(["min", "max", "size"])
    )
    each = each[each["size"] > 1]
    apart = (each["max"] / each["min"] - 1).groupby("op")
    return {
        str(op): {"cases": int(v.size), "median": float(f"{v.median():.3g}"), "p90": float(f"{v.quantile(0.9):.3g}")}
        for op, v in apart
    }
