"""Whole passes of a model, operator by operator: columns device, model, mode, seq_len, batch, index, op, target, name,
input_shapes, output_shape, inputs, forward_s, backward_s. One row for each pass is predicted: the sum of its operators."""

from typing import TYPE_CHECKING

import numpy as np

from costmodels.arithmetic import native_dtype
from costmodels.catalog import Catalog
from costmodels.operator_work import Work, read_operators, work
from costmodels.operators import pass_seconds
from costmodels.prediction import Floats, Prediction
from costmodels.tables.table import Fitted, TableSpec, devices_of, rows_of

if TYPE_CHECKING:
    import pandas as pd

PASS = ("device", "model", "mode", "seq_len", "batch")
"""Columns that name a pass."""


def prepare(frame: "pd.DataFrame") -> "pd.DataFrame":
    """One row for each pass: the columns of `PASS`, `seconds`, `operators` (a tuple of `Operator`), and their own seconds,
    (operators, 2), in `each_s`. A frame that has been prepared comes back as it is."""
    import pandas as pd

    if "operators" in frame.columns:
        return frame
    rows = []
    for key, of_pass in frame.groupby(list(PASS), sort=True):
        of_pass = of_pass.sort_values("index")
        each = of_pass[["forward_s", "backward_s"]].fillna(0.0).to_numpy(dtype=np.float64)
        operators = read_operators(rows_of(of_pass))
        rows.append((*key, float(each.sum()), operators, each))
    return pd.DataFrame(rows, columns=[*PASS, "seconds", "operators", "each_s"])


def predict(frame: "pd.DataFrame", catalog: Catalog, fitted: Fitted | None = None) -> Prediction:
    """(passes,) of a prepared frame."""
    devices = devices_of(frame, catalog)
    out = np.full((3, len(frame)), np.nan)
    for i, (name, mode, operators) in enumerate(zip(frame["device"], frame["mode"], frame["operators"], strict=True)):
        if name in devices:
            said = pass_seconds(devices[name], operators, training=mode == "train", fitted=fitted)
            out[:, i] = said.seconds, said.error, said.extrapolated
    return Prediction(seconds=out[0], error=out[1], extrapolated=~(out[2] == 0.0))


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """Of each operator the larger of FLOPs over peak and bytes over bandwidth."""
    devices = devices_of(frame, catalog)
    out = np.full(len(frame), np.nan)
    for i, (name, mode, operators) in enumerate(zip(frame["device"], frame["mode"], frame["operators"], strict=True)):
        if name in devices:
            device = devices[name]
            peak = device.flop_per_s[native_dtype("float32", device)]
            asked = (work(o, training=mode == "train") for o in operators)
            out[i] = sum(_at_the_peak(w, peak, device.memory_B_per_s) for w in asked)
    return out


def _at_the_peak(asked: Work, peak: float, B_per_s: float) -> float:
    if asked.products is None:
        return (asked.forward_B + asked.backward_B * asked.back) / B_per_s
    b, m, n, k = asked.products
    once = max(2.0 * b * m * n * k / peak, 4.0 * b * (m * k + k * n + m * n) / B_per_s)
    return once * (3 if asked.back else 1)


TABLE = TableSpec(
    columns=(
        "device",
        "model",
        "mode",
        "seq_len",
        "batch",
        "index",
        "op",
        "target",
        "name",
        "input_shapes",
        "output_shape",
        "inputs",
        "forward_s",
        "backward_s",
    ),
    numbers=("seq_len", "batch"),
    measured="seconds",
    groups=("device", "model", "mode"),
    predict=predict,
    roofline=roofline,
    prepare=prepare,
)
