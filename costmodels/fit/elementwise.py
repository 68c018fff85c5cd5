"""Fit of `costmodels.streaming` to measured elementwise operators, layer norms and softmax.

Elementwise operators give, for each device, the shares of bandwidth that reading and writing reach and what the source's timer adds
(linear least squares on relative errors). Norms and softmax then give, for all devices at once, cycles of a row and a thread's load
and, for each architecture, how full of rows in flight the L2 cache may be.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.catalog import Catalog
from costmodels.fit.rounding import rounded
from costmodels.prediction import Floats
from costmodels.specs import DeviceSpec
from costmodels.streaming import row_seconds
from costmodels.tables.elementwise import OPS, TABLE
from costmodels.tables.table import devices_of

if TYPE_CHECKING:
    import pandas as pd

CYCLES = ("norm_start", "norm_step", "softmax_start", "softmax_step", "warp_row")
START = {
    "norm_start": 2500.0,
    "norm_step": 4500.0,
    "softmax_start": 5000.0,
    "softmax_step": 2200.0,
    "warp_row": 25000.0,
}
START_CACHE = {"cache_low": 0.3, "cache_width": 0.45, "row_cycles": 1.0}


def fit(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Any]:
    """`parameters` and `error` as plain data; bands of unseen devices are those of each device left out in turn."""
    frame = frame[frame["op"].isin(OPS) & frame["device"].isin(list(devices_of(frame, catalog)))]
    found = _fit(frame, catalog)
    left_out = [
        _errors(frame[frame["device"] == name], catalog, _fit(frame[frame["device"] != name], catalog))
        for name in sorted(frame["device"].unique())
        if frame["device"].nunique() > 1
    ]
    found["error"] = {"seen": _bands([_errors(frame, catalog, found)]), "unseen": _bands(left_out)}
    found["floors"] = floors(frame)
    plain: dict[str, Any] = rounded(found)
    return plain


def floors(frame: "pd.DataFrame") -> dict[str, float]:
    """How far repeated measurements of the same operator and sizes lie apart: median of (largest / smallest - 1)."""
    times = frame.groupby(["device", "op", "rows", "cols"])["latency_s"].agg(["min", "max", "size"])
    again = times[times["size"] > 1]
    return {"repeated": float((again["max"] / again["min"] - 1.0).median())} if len(again) else {}


def _fit(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Any]:
    devices = {device.name: device for device in devices_of(frame, catalog).values()}
    streams = {d.name: _stream(rows, d) for d, rows in _by_device(frame, catalog) if len(rows)}
    harness_s = float(np.median([s.pop("harness_s") for s in streams.values()]))
    moved = np.array([OPS[op].operands + 1.0 for op in frame["op"]]) * 4.0 * frame["rows"] * frame["cols"]
    default = {key: float(np.median([s[key] for s in streams.values()])) for key in ("read_share", "write_share")}
    table: dict[str, Any] = {
        "parameters": {
            "harness_s": harness_s,
            "range_B": [float(moved.min()), float(moved.max())],
            "default": {**default, "powu_flops": 0.0},
            "architectures": {},
            "devices": streams,
        },
        "error": {"seen": dict.fromkeys(("pointwise", "norm", "softmax"), 1.0)},
    }
    table["error"]["unseen"] = table["error"]["seen"]
    _add_rows(frame, catalog, table, sorted({d.architecture for d in devices.values()}))
    _add_powers(frame, catalog, table)
    _share_architectures(table, devices)
    return table


def _by_device(frame: "pd.DataFrame", catalog: Catalog) -> list[tuple[DeviceSpec, "pd.DataFrame"]]:
    return [(device, frame[frame["device"] == name]) for name, device in devices_of(frame, catalog).items()]


def _stream(frame: "pd.DataFrame", device: DeviceSpec) -> dict[str, float]:
    """Shares of bandwidth and the timer's own seconds from operators that memory limits: t = t0 + read / r + written / w."""
    rows = frame[[OPS[op].kind == "pointwise" and OPS[op].work is None for op in frame["op"]]]
    once = 4.0 * rows["rows"] * rows["cols"] / device.memory_B_per_s
    operands = np.array([OPS[op].operands for op in rows["op"]])
    t = rows["latency_s"].to_numpy()
    terms = np.stack([np.full(len(rows), 1e-5), operands * once, once], axis=1) / t[:, None]
    (start, read, write), *_ = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)
    return {"read_share": 1.0 / read, "write_share": 1.0 / write, "harness_s": start * 1e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowKernel:
    """Measurements of a norm or a softmax on a device."""

    device: DeviceSpec
    norm: bool
    rows: Floats
    cols: Floats
    measured: Floats

    def seconds(self, table: dict[str, Any]) -> Floats:
        once = 4.0 * self.rows * self.cols
        return row_seconds(self.device, table, self.norm, self.rows, self.cols, 4.0, once, 2.0 * once)


def _row_kernels(frame: "pd.DataFrame", catalog: Catalog) -> list[_RowKernel]:
    return [
        _RowKernel(
            device=device,
            norm=OPS[str(op)].kind == "norm",
            **{name: part[name].to_numpy(dtype=np.float64) for name in ("rows", "cols")},
            measured=part["latency_s"].to_numpy(),
        )
        for device, rows in _by_device(frame, catalog)
        for op, part in rows.groupby("op")
        if OPS[str(op)].kind != "pointwise"
    ]


def _add_rows(frame: "pd.DataFrame", catalog: Catalog, table: dict[str, Any], architectures: list[str]) -> None:
    """Cycles of norms and softmax, and where the L2 cache stops to hold the rows in flight."""
    from scipy.optimize import least_squares

    groups = _row_kernels(frame, catalog)
    harness_s = table["parameters"]["harness_s"]
    start = np.array([*START.values(), 3.0, *(list(START_CACHE.values()) * len(architectures))])
    low = np.array([*(0.0 for _ in START), 1.5, *([0.05, 0.1, 0.3] * len(architectures))])
    high = np.array([*(1e5 for _ in START), 10.0, *([1.0, 2.0, 3.0] * len(architectures))])

    def residuals(x: Floats) -> Floats:
        _set_rows(table, x, architectures)
        return np.concatenate([np.log((g.seconds(table) + harness_s) / g.measured) for g in groups])

    found = least_squares(residuals, start, bounds=(low, high), x_scale=start, loss="soft_l1", f_scale=0.05)
    _set_rows(table, found.x, architectures)


def _set_rows(table: dict[str, Any], x: Floats, architectures: list[str]) -> None:
    default = dict(zip((*CYCLES, "sharp"), map(float, x[: len(CYCLES) + 1]), strict=True))
    own = x[len(CYCLES) + 1 :].reshape(-1, 3)
    lows, highs, cycles = own[:, 0], own[:, 0] + own[:, 1], own[:, 2]
    default |= {
        "cache_low": float(np.median(lows)),
        "cache_high": float(np.median(highs)),
        "row_cycles": float(np.exp(np.log(cycles).mean())),
    }
    table["parameters"]["default"].update(default)
    for name, values in zip(architectures, zip(lows, highs, cycles, strict=True), strict=True):
        table["parameters"]["architectures"][name] = dict(
            zip(("cache_low", "cache_high", "row_cycles"), map(float, values), strict=True)
        )


def _add_powers(frame: "pd.DataFrame", catalog: Catalog, table: dict[str, Any]) -> None:
    """FLOPs of a power with a number, from the devices where they take longer than the bytes do."""
    for device, rows in _by_device(frame[frame["op"] == "powu"], catalog):
        bound = TABLE.predict(rows, catalog, table).seconds
        t = rows["latency_s"].to_numpy()
        if len(rows) and np.median(t / bound) > 1.04:
            each = (t - table["parameters"]["harness_s"]) / (rows["rows"] * rows["cols"]).to_numpy()
            table["parameters"]["devices"][device.name]["powu_flops"] = (
                float(np.median(each)) * device.flop_per_s["float32"]
            )
    known = [d["powu_flops"] for d in table["parameters"]["devices"].values() if "powu_flops" in d]
    table["parameters"]["default"]["powu_flops"] = min(known, default=0.0)


def _share_architectures(table: dict[str, Any], devices: dict[str, DeviceSpec]) -> None:
    """A device that was not measured gets the bandwidth of its architecture, the mean of those that were."""
    for name, own in table["parameters"]["architectures"].items():
        of = [p for device, p in table["parameters"]["devices"].items() if devices[device].architecture == name]
        own |= {key: float(np.mean([p[key] for p in of])) for key in ("read_share", "write_share")}


def _errors(frame: "pd.DataFrame", catalog: Catalog, table: dict[str, Any]) -> dict[str, Floats]:
    error = np.abs(TABLE.predict(frame, catalog, table).seconds / frame["latency_s"].to_numpy() - 1.0)
    kinds = np.array([OPS[op].kind for op in frame["op"]])
    return {kind: error[kinds == kind] for kind in ("pointwise", "norm", "softmax")}


def _bands(errors: list[dict[str, Floats]]) -> dict[str, float]:
    """80th percentiles by kind of operator; 1 where nothing was measured."""
    gathered = {k: np.concatenate([np.zeros(0), *(e[k] for e in errors)]) for k in ("pointwise", "norm", "softmax")}
    return {kind: float(np.quantile(e, 0.8)) if len(e) else 1.0 for kind, e in gathered.items()}
