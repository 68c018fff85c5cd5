"""Fits `costmodels.storage` to published measurements: how much of a step loading stalls (MLPerf Storage), what programs reach of a
store (DeepNVMe, Run:ai, fastsafetensors, BigScience), and the phases of a checkpoint (ByteCheckpoint, table 9).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.catalog import Catalog
from costmodels.checkpoint import MESSAGE_S, RATES
from costmodels.fit.rounding import rounded
from costmodels.prediction import Floats
from costmodels.specs import StoreSpec
from costmodels.storage_tasks import Task, opened, stores_of, task_seconds, transfers
from costmodels.tables.storage import prepare

if TYPE_CHECKING:
    import pandas as pd

MIDDLE = {"read_B_per_s": 30e9, "write_B_per_s": 30e9, "start_s": 2e-3}
WIDTH = {"read_B_per_s": 1.5, "write_B_per_s": 1.5, "start_s": 2.0}
"""Prior of a program: logarithms are normal around the middle."""
SHARE_WIDTH, STREAM_WIDTH, ENGINE_S, ENGINE_WIDTH = 0.15, 0.5, 15.0, 1.0
NOISE = 0.15
FEW = 8
"""Rows below which a class's own residuals say nothing of its error."""
OPEN_S = {"missing": 3e-6, "local": 12e-6, "shared": 2e-3}
"""Of a file that exists on a local and on a shared store, where no row says."""
PLAIN_PHASES = {
    "planning": {"start_s": MESSAGE_S, "s_per_B": 0.0},
    **{
        name: {"start_s": RATES[phase].start_s, "s_per_B": 1.0 / RATES[phase].B_per_s}
        for name, phase in (("d2h", "d2h"), ("serialize", "pickle"), ("dump to shm", "dump"))
    },
    "upload": {"start_s": 9.0, "s_per_B": 2.5e-9},
    "download": {"start_s": 3.4, "s_per_B": 1.5e-9},
    "read": {"start_s": 3.4, "s_per_B": 1.5e-9},
    **{
        name: {"start_s": RATES[phase].start_s, "s_per_B": 1.0 / RATES[phase].B_per_s}
        for name, phase in (("deserialize", "unpickle"), ("h2d", "h2d"))
    },
}
"""Before any fit: the phases of `costmodels.checkpoint`, and a client of the catalogue's HDFS with four streams. Planning is for
each rank."""

Row = tuple[Task, float]
Stores = Mapping[str, StoreSpec]


def fit(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Any]:
    """Parameters and errors from the rows of `storage.csv` or from those that `prepare` made of them."""
    frame = prepare(frame)
    rows = [(t, float(s)) for t, s in zip(frame["task"], frame["seconds"], strict=True) if t is not None]
    stores = stores_of(frame["task"], catalog)
    parameters = _solve(rows, stores)
    sources = frame["source"].to_list() if "source" in frame.columns else [""] * len(frame)
    named = [
        (s, t, float(m)) for s, t, m in zip(sources, frame["task"], frame["seconds"], strict=True) if t is not None
    ]
    return dict(rounded({"parameters": parameters, "error": _errors(named, parameters, stores)}))


def _solve(rows: Sequence[Row], stores: Stores, tries: int = 30) -> dict[str, Any]:
    found = {
        "stall": _stalls([r for r in rows if r[0].kind == "loader"]),
        "phases": _phases([r for r in rows if r[0].kind == "phase"]),
        "open_s": _opens([r for r in rows if r[0].kind == "metadata"], stores),
    }
    return {**found, **_tools([r for r in rows if r[0].kind in ("transfer", "start")], stores, found, tries)}


def _stalls(rows: Sequence[Row]) -> dict[str, float]:
    """Median of what a step takes over computing, of each workload."""
    shares: dict[str, list[float]] = {}
    for task, seconds in rows:
        step = seconds / task.nbytes * task.accelerators * task.batch_B
        shares.setdefault(task.phase, []).append(step / task.compute_s - 1.0)
    found = {name: (max(float(np.median(s)), 0.0)) for name, s in sorted(shares.items())}
    return {**found, "typical": (float(np.median(list(found.values())))) if found else 0.1}


def _phases(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Start and time for a byte of each phase, least squares of relative errors; of one row only the start moves."""
    from scipy.optimize import nnls

    out = {}
    for name, plain in PLAIN_PHASES.items():
        mine = [(t.ranks if name == "planning" else t.nbytes, s) for t, s in rows if t.phase == name]
        size, seconds = (np.array([m[i] for m in mine]) for i in (0, 1))
        if name == "planning":
            out[name] = {
                "start_s": (float(np.median(seconds / size))) if mine else plain["start_s"],
                "s_per_B": 0.0,
            }
            continue
        prior = np.array([plain["start_s"], plain["s_per_B"] * 1e9])
        design = np.vstack(
            [np.stack([np.ones(len(mine)), size / 1e9], axis=1) / seconds[:, None], 0.1 * np.diag(1 / prior)]
        )
        start, each = nnls(design, np.concatenate([np.ones(len(mine)), [0.1, 0.1]]))[0]
        out[name] = {"start_s": (start), "s_per_B": (each * 1e-9)}
    return out


def _opens(rows: Sequence[Row], stores: Stores) -> dict[str, float]:
    out = dict(OPEN_S)
    for task, seconds in rows:
        name = "missing" if task.phase == "missing" else opened(stores[task.store])
        out[name] = seconds
    return out


def _tools(rows: Sequence[Row], stores: Stores, rest: Mapping[str, Any], tries: int) -> dict[str, Any]:
    """Rates and starts of programs, shares of stores' data sheets, a stream's and an engine's own time, all at once."""
    from scipy.optimize import least_squares

    tools = sorted({t.tool for t, _ in rows} | {"any"})
    named = sorted({t.store for t, _ in rows})
    middle = np.array(
        [np.log(v) for _ in tools for v in MIDDLE.values()] + [0.0] * len(named) + [0.0, np.log(ENGINE_S)]
    )
    widths = [w for _ in tools for w in WIDTH.values()] + [SHARE_WIDTH] * len(named) + [STREAM_WIDTH, ENGINE_WIDTH]
    width = np.array(widths)

    moved, measured, centre = transfers([t for t, _ in rows], stores), np.array([s for _, s in rows]), middle

    def unpacked(x: Floats) -> dict[str, Any]:
        v = np.exp(x)
        each = len(MIDDLE)
        own = {n: dict(zip(MIDDLE, v[i * each : (i + 1) * each].tolist(), strict=True)) for i, n in enumerate(tools)}
        shares = dict(zip(named, v[len(tools) * each : -2].tolist(), strict=True))
        return {**rest, "tools": own, "stores": shares, "stream": float(v[-2]), "engine_start_s": float(v[-1])}

    def residuals(x: Floats) -> Floats:
        p = unpacked(x)
        return np.concatenate([np.log(moved.seconds(p) / measured), NOISE * (x - centre) / width])

    if rows:
        middle = least_squares(residuals, middle, loss="soft_l1", f_scale=NOISE, max_nfev=tries).x
    solved = unpacked(middle)
    return {k: v for k, v in solved.items() if k not in rest}


def _errors(named: Sequence[tuple[str, Task, float]], p: Mapping[str, Any], stores: Stores) -> dict[str, float]:
    """80th percentiles of relative residuals: by class, where it has enough rows, and of sources left out one by one."""
    out = {}
    for kind in sorted({t.kind for _, t, _ in named}):
        own = _residuals([(t, s) for _, t, s in named if t.kind == kind], p, stores)
        if len(own) >= FEW:
            out[kind] = float(np.percentile(own, 80))
    left_out: list[float] = []
    for source in sorted({s for s, _, _ in named}):
        others = [(t, s) for n, t, s in named if n != source]
        if others:
            known = _solve(others, stores)
            left_out += _residuals([(t, s) for n, t, s in named if n == source], known, stores)
    return {**out, "unseen": float(np.percentile(left_out, 80)) if left_out else 1.0}


def _residuals(rows: Sequence[Row], p: Mapping[str, Any], stores: Stores) -> list[float]:
    off = [abs(task_seconds(t, stores, p) / s - 1.0) for t, s in rows]
    return [r for r in off if np.isfinite(r)]
