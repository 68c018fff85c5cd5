"""Fit of links and of the constants of `costmodels.collectives` to measured collectives.

Every link has four numbers (latency, start, ramp, efficiency); those of one kind are drawn towards their mean, which is also what
is said of a link of that kind without measurements. Rows are first joined to quarter octaves of size, and every group (device,
fabric, op, ranks, source) counts by the square root of the quarter octaves that it has, so that a profile of a thousand sizes
does not drown a published table of twenty. The loss is Huber's on logarithms of the times.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.catalog import Catalog
from costmodels.collective_rows import Links, Rows, rows_of, times
from costmodels.collectives import Constants
from costmodels.fit.collective_bands import Cells, bands, floors, uses
from costmodels.fit.rounding import rounded
from costmodels.point_to_point import SendConstants
from costmodels.ports import FITTED
from costmodels.prediction import Floats

if TYPE_CHECKING:
    import pandas as pd

# Where the search begins and what is drawn towards where rows say little: (value, factor that is one standard deviation).
SHARED: dict[str, tuple[float, float]] = {
    "ring_share": (0.9, 1.1),
    "own_copy": (0.35, 2.0),
    "exchange_steps": (3.0, 2.0),
    "switch_steps": (14.0, 2.0),
    "switch_share": (0.71, 1.3),
    "switch_ramp": (3.5, 2.0),
    "send_share": (0.75, 1.3),
    "eager_s": (45e-6, 2.0),
    "staged_B_per_s": (10e9, 3.0),
    "staged_power": (1.2, 1.3),
}
SHARES = ("ring_share", "switch_share", "send_share")
KINDS: dict[str, tuple[float, float, float, float]] = {
    "nvlink": (1.1e-6, 6e-6, 4e-6, 0.8),
    "pcie": (1.3e-6, 5e-6, 2e-6, 0.75),
    "infiniband": (3e-6, 12e-6, 8e-6, 0.9),
    "efa": (13e-6, 20e-6, 40e-6, 0.9),
    "ethernet": (15e-6, 10e-6, 10e-6, 0.7),
    "omnipath": (3e-6, 12e-6, 8e-6, 0.3),
}
"""Latency, start, ramp and efficiency of each kind before anything is fitted."""
KIND_SPREAD, LINK_SPREAD = 3.0, 1.5
"""Factors of one standard deviation: of a kind about its first guess, of a link about its kind (efficiency: odds)."""
STAGED_SPREAD = 3.0
_SOURCE = re.compile(r": | [\w.-]+/[\w.-]+$")
SOFT = 0.1
"""Residuals of logarithms beyond which the loss grows only linearly."""


def cells_of(frame: "pd.DataFrame", catalog: Catalog) -> Cells:
    """The rows that the model can say something about, joined; kernels for mixtures of experts are none of NCCL's."""
    nccl = ~frame["op"].astype(str).str.startswith("MoE").to_numpy()
    known = rows_of(frame, catalog).known & frame["time_s"].notna().to_numpy() & nccl
    part = frame[known].reset_index(drop=True)
    source = part["source"].astype(str).str.replace("@.*", "", regex=True) if "source" in part else ""
    part = part.assign(
        source=source,
        cell=np.round(4 * np.log2(part["nbytes"].fillna(1.0))),
        log_s=np.log(part["time_s"]),
        log_B=np.log(part["nbytes"]),
    )
    keys = [k for k in ("device", "fabric", "op", "n_ranks", "n_nodes", "source") if k in part.columns]
    found = part.groupby([*keys, "cell"], dropna=False, sort=True)
    joined = found[["log_s", "log_B"]].median().assign(size=found.size()).reset_index()
    joined["nbytes"] = np.exp(joined["log_B"])
    cells = joined.groupby(keys, dropna=False)["cell"].transform("size").to_numpy(dtype=np.float64)
    return Cells(joined, rows_of(joined, catalog), joined["log_s"].to_numpy(dtype=np.float64), cells**-0.5)


class Unknowns:
    """The vector of unknowns: logarithms (of odds for shares that cannot exceed one), each in units of its spread."""

    def __init__(self, rows: Rows) -> None:
        self.links, self.hosts = rows.links, rows.hosts
        twins = {_port(x.name): i for i, x in enumerate(rows.links)}
        self.twin = np.array([twins[_port(x.name)] for x in rows.links], dtype=np.int64)
        self.kinds = sorted({x.kind for x in rows.links})
        self.kind = np.array([self.kinds.index(x.kind) for x in rows.links], dtype=np.int64)
        self.shared = list(SHARED)
        first = [KINDS.get(k, KINDS["ethernet"]) for k in self.kinds]
        self.first = np.array([[*np.log(x[:3]), _odds(x[3])] for x in first]).reshape(len(self.kinds), 4)
        self.size = len(self.shared) + 4 * (len(self.kinds) + len(self.links)) + len(self.hosts)

    def read(self, x: Floats) -> tuple[dict[str, float], Floats, Floats, Floats]:
        """Shared numbers by name, (kinds, 4), (links, 4), (hosts,)."""
        s, k, n = len(self.shared), 4 * len(self.kinds), 4 * len(self.links)
        shared = {name: SHARED[name][0] * SHARED[name][1] ** x[i] for i, name in enumerate(self.shared)}
        shared |= {name: min(shared[name], 1.0) for name in SHARES}
        kinds = self.first + np.log(KIND_SPREAD) * x[s : s + k].reshape(-1, 4)
        own = x[s + k : s + k + n].reshape(-1, 4)[self.twin]
        links = kinds[self.kind] + np.log(LINK_SPREAD) * own
        hosts = shared["staged_B_per_s"] * STAGED_SPREAD ** x[s + k + n :]
        return shared, _natural(kinds), _natural(links), hosts

    def times(self, rows: Rows, x: Floats) -> tuple[Floats, Floats]:
        """(rows,) seconds, and the part that does not grow with size, of rows with these links and hosts."""
        shared, _, links, hosts = self.read(x)
        rates = np.array([link.B_per_s for link in self.links])
        numbers = Links(B_per_s=rates, **dict(zip(FITTED, links.T, strict=True)))
        return times(rows, numbers, _constants(shared), _send(shared), hosts, shared["eager_s"])


def _port(name: str) -> str:
    """Networks that reduce have the ports of those that do not."""
    return name.removesuffix("_sharp")


def _odds(share: float) -> float:
    return float(np.log(share / (1 - share)))


def _natural(values: Floats) -> Floats:
    return np.concatenate([np.exp(values[:, :3]), 1 / (1 + np.exp(-values[:, 3:]))], axis=1)


def solve(unknowns: Unknowns, cells: Cells, weight: Floats, start: Floats, tries: int = 60) -> Floats:
    """The vector of unknowns that suits the cells best; `weight` (cells,) may leave some out."""
    from scipy.optimize import least_squares

    def misfit(x: Floats) -> Floats:
        found, _ = unknowns.times(cells.rows, x)
        away = (np.log(found) - cells.log_s) / SOFT
        huber = np.where(np.abs(away) > 1, np.sign(away) * np.sqrt(2 * np.maximum(np.abs(away), 1.0) - 1), away)
        return np.concatenate([huber * np.sqrt(weight), x])

    return np.asarray(least_squares(misfit, start, max_nfev=tries, ftol=1e-5, xtol=1e-5).x)


def _constants(shared: Mapping[str, float]) -> Constants:
    return Constants(**{f.name: shared[f.name] for f in fields(Constants)})


def _send(shared: Mapping[str, float]) -> SendConstants:
    return SendConstants(**{f.name: shared[f.name] for f in fields(SendConstants)})


def fit(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Any]:
    """The fitted table of these rows: `parameters`, `links`, `kinds`, `hosts`, `error` (bands) and `floors`."""
    cells = cells_of(frame, catalog)
    unknowns = Unknowns(cells.rows)
    best = solve(unknowns, cells, cells.weight, np.zeros(unknowns.size))
    found: dict[str, Any] = rounded(
        {
            **table_of(unknowns, cells, best),
            "error": bands(unknowns, cells, best, solve),
            "floors": floors(frame, catalog),
        }
    )
    return found


def table_of(unknowns: Unknowns, cells: Cells, x: Floats) -> dict[str, Any]:
    """Unknowns as plain data."""
    shared, kinds, links, hosts = unknowns.read(x)
    names = [link.name for link in unknowns.links]
    order = sorted(range(len(names)), key=names.__getitem__)
    return {
        "parameters": {k: float(v) for k, v in shared.items()},
        "links": {names[i]: {**_numbers(links[i]), **_evidence(cells, i)} for i in order},
        "kinds": {
            kind: {**_numbers(row), "links": sorted(x.name for x in unknowns.links if x.kind == kind)}
            for kind, row in zip(unknowns.kinds, kinds, strict=True)
        },
        "hosts": {name: float(v) for name, v in sorted(zip(unknowns.hosts, hosts, strict=True))},
    }


def _numbers(row: Floats) -> dict[str, float]:
    return dict(zip(FITTED, row.tolist(), strict=True))


def _evidence(cells: Cells, link: int) -> dict[str, Any]:
    """How many rows the link has, and whose."""
    mine = cells.frame[uses(cells.rows, link)]
    sources = sorted({_SOURCE.split(str(s))[0] for s in mine["source"]})
    return {"rows": int(mine["size"].sum()), "sources": "; ".join(s for s in sources if s)}
