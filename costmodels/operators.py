"""Seconds of operators as torch.fx records them, one after the other, in eager PyTorch and float32.

A pass takes the sum of its operators: products go to `gemm.predict`, everything else moves its operands through memory once, and
none takes less than the host needs to start it. Views and questions about shapes cost the host's time only. What a kind of
operator asks of a device is in `operator_work`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from costmodels import fitted as tables
from costmodels import gemm
from costmodels.operator_work import Operator, Work, work
from costmodels.prediction import Floats, Prediction
from costmodels.specs import DeviceSpec

PLAIN = {"floor": 2.5, "share": 1.0, "products": 1.0}
"""A group that was not measured: of an elementwise operator."""


def predict(
    device: DeviceSpec, operators: Sequence[Operator], *, training: bool, fitted: Mapping[str, Any] | None = None
) -> Prediction:
    """(operators, 2) seconds of each operator, forward and backward; backward is zero outside of training."""
    found = tables.load("model_operators") if fitted is None else fitted
    asked = [work(o, training=training) for o in operators]
    seconds = price(device, asked, product_seconds(device, asked), found["parameters"])
    return _said(seconds, device, found, "operator")


def pass_seconds(
    device: DeviceSpec, operators: Sequence[Operator], *, training: bool, fitted: Mapping[str, Any] | None = None
) -> Prediction:
    """() seconds of a whole pass: forward, and backward if `training`."""
    found = tables.load("model_operators") if fitted is None else fitted
    each = predict(device, operators, training=training, fitted=found)
    return _said(np.asarray(each.seconds.sum()), device, found, "pass")


def launch(device: DeviceSpec, thousandths: ArrayLike, *, fitted: Mapping[str, Any] | None = None) -> Prediction:
    """Seconds in which the host starts what takes `thousandths` of its time for one kernel; see `floors`."""
    found = tables.load("model_operators") if fitted is None else fitted
    own = found["parameters"]["devices"].get(device.name, found["parameters"]["unseen"])
    return _said(np.asarray(thousandths, dtype=np.float64) / 1000.0 * own["host_s"], device, found, "operator")


@lru_cache(maxsize=1)
def floors() -> Mapping[str, float]:
    """Time in which the host starts an operator of a group, "_back" its backward, as a multiple of the device's `host_s`."""
    return {
        name: float(group["floor"]) for name, group in tables.load("model_operators")["parameters"]["groups"].items()
    }


def _said(seconds: Floats, device: DeviceSpec, found: Mapping[str, Any], what: str) -> Prediction:
    known = device.name in found["parameters"]["devices"]
    bands = found["error"][what]
    error = float(bands.get(device.name, bands["unseen"]))
    if not known:  # products of a device that is new to them as well may be further off
        square = gemm.predict(device, "float32", 1.0, 4096.0, 4096.0, 4096.0)
        error = max(error, float(np.nan_to_num(square.error)))
    return Prediction(
        seconds=seconds, error=np.full(seconds.shape, error), extrapolated=np.full(seconds.shape, not known)
    )


def product_seconds(device: DeviceSpec, asked: Sequence[Work]) -> Floats:
    """(works, 2) seconds of matrix products, forward and both backward; zero for what is none.

    What `gemm` adds for very wide results (measured with weights stored by inputs; a fourfold time on P100) is left out: layers
    store weights by outputs, and the heads of recorded models reach 0.9 of the peak.
    """
    device = replace(device, efficiency={**device.efficiency, "wide": 0.0})
    out = np.zeros((len(asked), 2))
    at = [i for i, w in enumerate(asked) if w.products]
    if at:
        b, m, n, k = np.array([asked[i].products for i in at], dtype=np.float64).T
        out[at, 0] = gemm.predict(device, "float32", b, m, n, k).seconds
        back = [i for i in at if asked[i].back]
        if back:
            b, m, n, k = np.array([asked[i].products for i in back], dtype=np.float64).T
            out[back, 1] = gemm.predict(device, "float32", b, m, k, n).seconds
            out[back, 1] += gemm.predict(device, "float32", b, k, n, m).seconds
    return out


def price(device: DeviceSpec, asked: Sequence[Work], products_s: Floats, p: Mapping[str, Any]) -> Floats:
    """(works, 2) seconds: the host's floor of each group, or a start and the bytes and products at the rate of the group."""
    own = p["devices"].get(device.name, p["unseen"])
    out = np.zeros((len(asked), 2))
    groups = np.array([w.group for w in asked])
    moved = np.array([[w.forward_B, w.backward_B] for w in asked])
    back = np.array([w.back for w in asked])
    for group in dict.fromkeys(groups):
        if group == "free":
            continue
        rows = groups == group
        for way, name in enumerate((group, group + "_back")):
            one = p["groups"].get(name, PLAIN)
            kernel = moved[rows, way] / (device.memory_B_per_s * own["bandwidth"] * one["share"])
            kernel = kernel + products_s[rows, way] * own["products"] * one["products"]
            busy = np.where(kernel > 0, kernel + p["start"] * own["host_s"], 0.0)
            out[rows, way] = np.maximum(one["floor"] * own["host_s"], busy)
        out[rows, 1] *= back[rows]
    return out
