"""Fits `costmodels.operators` to passes recorded operator by operator (NeuSight, MIT).

Of a device: the host's time for an operator that computes nothing, and the shares of its bandwidth and of `gemm.predict`'s speed
that eager operators reach. Of a group of operators, for all devices: its floor in units of the host's time, its share of the
bandwidth, its multiple of `gemm.predict`. Devices that were not measured get the geometric means.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.catalog import Catalog
from costmodels.fit.rounding import rounded
from costmodels.operator_work import Work, work
from costmodels.operators import price, product_seconds
from costmodels.prediction import Floats
from costmodels.specs import DeviceSpec
from costmodels.tables.model_operators import prepare
from costmodels.tables.table import devices_of

if TYPE_CHECKING:
    import pandas as pd

START = 1.3
"""Start of a kernel that runs for long, in units of the host's time: what is left of small elementwise operators when their bytes
are taken off (V100: 14 us over 10 us)."""
LARGEST_FLOOR = 5.0
"""No operator needs the host for longer, in the same units: groups without small operators would take their smallest for it."""
ROUNDS = 12
TINY_S = 1e-6

Pass = tuple[DeviceSpec, list[Work], Floats, Floats]
"""Device, works, their products' seconds and their measured seconds, both (works, 2)."""


def fit(frame: "pd.DataFrame", catalog: Catalog) -> dict[str, Any]:
    """Parameters and errors from the rows of `model_operators.csv`, or from passes that `prepare` made of them."""
    passes = _passes(prepare(frame), catalog)
    parameters = _solve(passes)
    return dict(rounded({"parameters": parameters, "error": _errors(passes, parameters)}))


def _passes(frame: "pd.DataFrame", catalog: Catalog) -> list[Pass]:
    devices = devices_of(frame, catalog)
    out = []
    for name, mode, operators, each in zip(
        frame["device"], frame["mode"], frame["operators"], frame["each_s"], strict=True
    ):
        if name in devices:
            asked = [work(o, training=mode == "train") for o in operators]
            out.append((devices[name], asked, product_seconds(devices[name], asked), each))
    return out


def _solve(passes: Sequence[Pass]) -> dict[str, Any]:
    """Host times and floors first, then shares and multiples in turn, each the weighted median of its ratios."""
    rows = _Rows(passes)
    devices = {d: {"host_s": rows.host_s(d), "bandwidth": 0.85, "products": 1.0} for d in rows.names}
    groups = {g: {"floor": rows.floor(g, devices), "share": 1.0, "products": 1.0} for g in rows.group_names}
    for _ in range(ROUNDS):
        for d, own in devices.items():
            own["bandwidth"] *= rows.ratio(
                devices, groups, rows.moving & (rows.device == d) & (rows.group == "pointwise")
            )
            own["products"] /= rows.ratio(devices, groups, rows.multiplying & (rows.device == d))
        for g, one in groups.items():
            one["share"] *= rows.ratio(devices, groups, rows.moving & (rows.group == g)) if g != "pointwise" else 1.0
            one["products"] /= rows.ratio(devices, groups, rows.multiplying & (rows.group == g))
    unseen = {
        k: float(np.exp(np.mean([np.log(own[k]) for own in devices.values()])))
        for k in ("host_s", "bandwidth", "products")
    }
    unseen["products"] = 1.0
    return {"start": START, "devices": devices, "unseen": unseen, "groups": groups}


class _Rows:
    """Every operator's forward and backward as rows of arrays."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        ways = [(p, way) for p in passes for way in (0, 1)]
        self.device = np.array([p[0].name for p, _ in ways for _ in p[1]])
        self.group = np.array([w.group + ("_back" if way else "") for p, way in ways for w in p[1]])
        self.B_per_s = np.array([p[0].memory_B_per_s for p, _ in ways for _ in p[1]])
        self.moved = np.array([(w.backward_B if way else w.forward_B) for p, way in ways for w in p[1]])
        self.products_s = np.concatenate([p[2][:, way] for p, way in ways])
        self.measured = np.concatenate([p[3][:, way] for p, way in ways])
        used = (self.measured > TINY_S) & (self.group != "free")
        for field in ("device", "group", "B_per_s", "moved", "products_s", "measured"):
            setattr(self, field, getattr(self, field)[used])
        self.names = sorted(set(self.device.tolist()))
        self.group_names = sorted(set(self.group.tolist()))
        self.moving, self.multiplying = self.moved > 0, self.products_s > 0

    def host_s(self, device: str) -> float:
        return float(np.median(self.measured[(self.device == device) & (self.group == "host")]))

    def floor(self, group: str, devices: Mapping[str, Mapping[str, float]]) -> float:
        rows = self.group == group
        host = np.array([devices[d]["host_s"] for d in self.device[rows]])
        middle = 50 if group in ("host", "view", "create") else 3
        return float(min(np.percentile(self.measured[rows] / host, middle), LARGEST_FLOOR))

    def ratio(self, devices: Mapping[str, Any], groups: Mapping[str, Any], rows: Any) -> float:
        """Weighted median of what the model says of the kernels' own time over what is left of the measured time; 1 where no row
        is long enough to tell."""
        host = np.array([devices[d]["host_s"] for d in self.device[rows]])
        left = self.measured[rows] - START * host
        one = [groups[g] for g in self.group[rows]]
        rate = np.array([devices[d]["bandwidth"] for d in self.device[rows]]) * np.array([o["share"] for o in one])
        said = self.moved[rows] / (self.B_per_s[rows] * rate)
        scale = np.array([devices[d]["products"] for d in self.device[rows]]) * np.array([o["products"] for o in one])
        said = said + self.products_s[rows] * scale
        long = left > 4 * host
        if not long.any():
            return 1.0
        ratios, weights = said[long] / left[long], np.sqrt(left[long])
        order = np.argsort(ratios)
        at = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
        return float(ratios[order][min(at, len(ratios) - 1)])


def _errors(passes: Sequence[Pass], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """80th percentiles of relative residuals: of seen devices in sample, of unseen ones with the device left out."""
    names = sorted({p[0].name for p in passes})
    seen = {n: _residuals([p for p in passes if p[0].name == n], parameters) for n in names}
    left_out: list[tuple[Floats, Floats]] = []
    for n in names if len(names) > 1 else ():
        others = _solve([p for p in passes if p[0].name != n])
        left_out.append(_residuals([p for p in passes if p[0].name == n], others))
    found: dict[str, Any] = {"operator": {}, "pass": {}}
    for i, what in enumerate(("operator", "pass")):
        found[what] = {n: float(np.percentile(r[i], 80)) for n, r in seen.items()}
        unseen = np.concatenate([r[i] for r in left_out or seen.values()])
        found[what]["unseen"] = float(np.percentile(unseen, 80))
    return found


def _residuals(passes: Sequence[Pass], parameters: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Of operators and of passes."""
    each, whole = [], []
    for device, asked, products_s, measured in passes:
        said = price(device, asked, products_s, parameters)
        there = measured > TINY_S
        each.append(np.abs(said[there] / measured[there] - 1))
        whole.append(abs(said.sum() / measured.sum() - 1))
    return np.concatenate(each), np.array(whole)
