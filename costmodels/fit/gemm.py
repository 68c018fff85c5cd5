"""Fit of the GEMM model: effects of format, architecture, device and library on its parameters."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.arithmetic import format_of
from costmodels.catalog import Catalog
from costmodels.fit.hierarchy import Effects, Ints, Problem, solve
from costmodels.gemm import TIMED, Hardware, hardware, seconds
from costmodels.gemm_parameters import TYPICAL, Parameters, keys, lookup
from costmodels.prediction import Bools, Floats
from costmodels.tables.gemm import libraries, sizes_of
from costmodels.tables.table import devices_of

if TYPE_CHECKING:
    import pandas as pd

ROWS = 400
"""A group counts as at most so many rows: sizes of one kernel on one device are not independent measurements."""

FEW = 150
"""The same for fits without one device, which are many and serve the error bands alone."""

SPREAD = {"all": 0.5, "kind": 0.3, "family": 0.3, "device": 0.2, "library": 0.2, "device_library": 0.15}
"""How much a parameter differs (deviation of its logarithm) between the keys of a level."""

STEADY = {"peak": 0.4, "stream": 0.25}
"""Parameters that differ less, by so much."""

INSIDE = 0.8
"""Share of residuals within an error band."""

AGAIN = 8
"""Steps of a fit without one device, which starts from that with all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Measurements with what the model needs of each row. Rows of one device, format and library are a group."""

    hardware: Hardware  # (rows,) each
    form: "Forms"
    sizes: list[Floats]  # batch, m, n, k
    measured: Floats  # seconds
    group: Ints
    timed: Floats  # 1 where the library's timer counts, 0 elsewhere
    keys: list[dict[str, str]]  # by group

    def predict(self, p: Parameters) -> Floats:
        """(rows,) seconds with (rows,) parameters."""
        return seconds(self.hardware, self.form, p, *self.sizes, timed=self.timed)

    def take(self, rows: Bools) -> "Rows":
        return Rows(
            hardware=Hardware(**{f: getattr(self.hardware, f)[rows] for f in Hardware.__slots__}),
            form=Forms(**{f: getattr(self.form, f)[rows] for f in Forms.__slots__}),
            sizes=[s[rows] for s in self.sizes],
            measured=self.measured[rows],
            group=self.group[rows],
            timed=self.timed[rows],
            keys=self.keys,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """Formats of (rows,)."""

    a_B: Floats
    b_B: Floats
    c_B: Floats
    quantises: Floats


def fit(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Any]:
    """Parameters, error bands, measured ranges and noise floors from rows with the columns of the table `gemm`."""
    rows = rows_of(frame, catalog)
    effects = solve(problem(thin(rows, ROWS)))
    return {
        "parameters": effects,
        "error": {**seen_errors(rows, effects), "unseen": unseen_errors(rows, effects)},
        "range": ranges(rows),
        "floors": floors(frame),
    }


def rows_of(frame: "pd.DataFrame", catalog: Catalog) -> Rows:
    """Rows of devices and dtypes that are known."""
    devices = devices_of(frame, catalog)
    names = list(zip(frame["device"].map(str), frame["dtype"].map(str), libraries(frame), strict=True))
    forms = {n: format_of(n[1], devices[n[0]]) for n in dict.fromkeys(names) if n[0] in devices}
    known = {n: form for n, form in forms.items() if form is not None}
    kept = np.array([n in known for n in names])
    number = {n: i for i, n in enumerate(known)}
    group = np.array([number[n] for n in names if n in known], dtype=np.int64)
    sheets = [hardware(devices[n[0]], form) for n, form in known.items()]
    return Rows(
        hardware=Hardware(**{f: np.array([getattr(s, f) for s in sheets])[group] for f in Hardware.__slots__}),
        form=Forms(
            **{f: np.array([float(getattr(form, f)) for form in known.values()])[group] for f in Forms.__slots__}
        ),
        sizes=[s[kept] for s in sizes_of(frame)],
        measured=frame["latency_s"].to_numpy(dtype=np.float64)[kept],
        group=group,
        timed=np.array([float(library in TIMED) for _, _, library in known])[group],
        keys=_levels([keys(devices[d], f.kind, lib) for (d, _, lib), f in known.items()]),
    )


def _levels(found: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without the levels of libraries where only one was measured: they could not be told from the levels above."""
    by_device = Counter(device for device, _ in {(k["device"], k.get("library")) for k in found})
    by_kind = Counter(kind for kind, _ in {(k["kind"], k.get("library")) for k in found})
    dropped = [
        {"device_library" if by_device[k["device"]] == 1 else "", "library" if by_kind[k["kind"]] == 1 else ""}
        for k in found
    ]
    return [{level: key for level, key in k.items() if level not in d} for k, d in zip(found, dropped, strict=True)]


def thin(rows: Rows, most: int) -> Rows:
    """Every so many-th row of groups with more than `most`."""
    counts = np.bincount(rows.group, minlength=len(rows.keys))
    kept = np.zeros(len(rows.group), dtype=np.bool_)
    for g, count in enumerate(counts):
        places = np.flatnonzero(rows.group == g)
        kept[places[np.linspace(0, count - 1, min(most, count)).astype(int)] if count else []] = True
    return rows.take(kept)


def problem(rows: Rows) -> Problem:
    """Rows as `solve` wants them."""
    return Problem(
        logs=lambda p: np.log(rows.predict(p)),
        measured=np.log(rows.measured),
        group=rows.group,
        keys=rows.keys,
        typical=TYPICAL,
        deviation={level: {n: spread * STEADY.get(n, 1.0) for n in TYPICAL} for level, spread in SPREAD.items()},
    )


def residuals(rows: Rows, effects: Effects, levels: tuple[str, ...]) -> Floats:
    """(rows,) |predicted / measured - 1| when only `levels` are known."""
    values = [lookup(effects, {level: key for level, key in k.items() if level in levels}) for k in rows.keys]
    p = {name: np.array([v[name] for v in values])[rows.group] for name in TYPICAL}
    return np.abs(rows.predict(p) / rows.measured - 1.0)


def seen_errors(rows: Rows, effects: Effects) -> dict[str, dict[str, float]]:
    """Bands of each device and kind, when the library is known and when it is not (which matters where there are several)."""
    several = np.array(["device_library" in k for k in rows.keys])[rows.group]
    known = residuals(rows, effects, tuple(SPREAD))
    unknown = np.where(several, residuals(rows, effects, ("all", "kind", "family", "device")), known)
    names = {
        level: np.array([k.get(level, "") for k in rows.keys])[rows.group] for level in ("device", "device_library")
    }
    return {"device": _bands(unknown, names["device"]), "device_library": _bands(known, names["device_library"])}


def unseen_errors(rows: Rows, effects: Effects) -> dict[str, float]:
    """Bands of each kind on devices that the fit has not seen, each left out once; of all kinds together."""
    device = np.array([k["device"].split("/")[0] for k in rows.keys])[rows.group]
    kind = np.array([k["kind"] for k in rows.keys])[rows.group]
    error = np.full(len(device), np.nan)
    for name in np.unique(device):
        out = device == name
        if not out.all():
            others = solve(problem(thin(rows.take(~out), FEW)), _without(effects, str(name)), AGAIN)
            error[out] = residuals(rows.take(out), others, ("all", "kind", "family", "library"))
    known = np.isfinite(error)
    return {**_bands(error[known], kind[known]), **_bands(error, np.full(len(error), "all"))}


def _without(effects: Effects, device: str) -> Effects:
    return {
        level: {
            key: e for key, e in found.items() if not level.startswith("device") or not key.startswith(f"{device}/")
        }
        for level, found in effects.items()
    }


def _bands(error: Floats, names: np.ndarray[Any, Any]) -> dict[str, float]:
    known = np.isfinite(error)
    found = {str(n): np.quantile(error[known & (names == n)], INSIDE) for n in np.unique(names[known]) if n}
    return {name: float(f"{value:.3g}") for name, value in found.items()} or {"all": 0.5}


def ranges(rows: Rows) -> dict[str, dict[str, list[float]]]:
    """Smallest and largest of each size, by kind."""
    kind = np.array([k["kind"] for k in rows.keys])[rows.group]
    sizes = dict(zip(("batch", "m", "n", "k"), rows.sizes, strict=True))
    return {
        str(one): {name: [float(s[kind == one].min()), float(s[kind == one].max())] for name, s in sizes.items()}
        for one in np.unique(kind)
    }


def floors(frame: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """How much libraries differ on the same device, dtype and sizes: median and 90th percentile of |log ratio|, all pairs."""
    known = frame.assign(library=[lib or "" for lib in libraries(frame)], batch=sizes_of(frame)[0])
    where = ["device", "dtype", "batch", "m", "n", "k"]
    times = known.pivot_table(index=where, columns="library", values="latency_s", aggfunc="median").transform("log")
    found = {}
    for (device, dtype), part in times.groupby(level=["device", "dtype"]):
        pairs = [(part[x] - part[y]).abs().dropna().to_numpy() for x, y in combinations(part.columns, 2)]
        gaps = np.concatenate(pairs) if pairs else np.empty(0)
        if len(gaps):
            quantiles = {"median": np.median(gaps), "p90": np.quantile(gaps, 0.9)}
            found[f"{device}/{dtype}"] = {name: float(f"{np.expm1(v):.3g}") for name, v in quantiles.items()}
    return found
