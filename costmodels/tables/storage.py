"""Storage and checkpoints: columns hardware, storage, n_gpus, nodes, workload, model_or_object, size_gb, parallelism, tool,
concurrency, metric, value, unit, notes. Every row becomes seconds for a number of bytes, 1 TB where only a rate is given.
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels import fitted as tables
from costmodels.catalog import Catalog
from costmodels.prediction import Floats, Prediction
from costmodels.storage import array, loading_B_per_s
from costmodels.storage_tasks import RATES, TIMES, UNSIZED_B, Task, stores_of, task_of, task_seconds
from costmodels.tables.table import Fitted, TableSpec, rows_of

if TYPE_CHECKING:
    import pandas as pd


def prepare(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Adds `seconds`, `task` (None where a row does not say what was moved), `class` and `device`; rows without a time or a rate
    are left out."""
    import pandas as pd

    if "task" in frame.columns:
        return frame
    rows = []
    for row in rows_of(frame):
        unit, value = str(row["unit"]).strip().lower(), float(row["value"])
        task = task_of(row)
        seconds = _seconds(unit, value, row, task)
        if seconds is not None:
            kind = task.kind if task else "unknown"
            tool = row["tool"] if isinstance(row["tool"], str) else "not stated"
            rows.append({**row, "tool": tool, "seconds": seconds, "task": task, "class": kind})
    columns = list(dict.fromkeys([*frame.columns, "seconds", "task", "class"]))
    return pd.DataFrame(rows, columns=columns)


def _seconds(unit: str, value: float, row: dict[str, Any], task: Task | None) -> float | None:
    nbytes = task.nbytes if task else UNSIZED_B
    if not value > 0:
        return None
    if unit in TIMES:
        return value * TIMES[unit]
    if unit in RATES:
        return nbytes / (value * RATES[unit])
    if unit == "tokens/s":
        batch = re.search(r"batch (\d+)", str(row["concurrency"]))
        return float(batch[1]) / value if batch else None
    return None


def predict(frame: "pd.DataFrame", catalog: Catalog, fitted: Fitted | None = None) -> Prediction:
    """(rows,) of a prepared frame; NaN where the row does not say what was moved or where to."""
    found = tables.load("storage") if fitted is None else fitted
    stores = stores_of(frame["task"], catalog)
    seconds = np.array([task_seconds(t, stores, found["parameters"]) for t in frame["task"]], dtype=np.float64)
    classes = frame["class"].to_numpy()
    error = np.array([float(found["error"].get(c, found["error"]["unseen"])) for c in classes], dtype=np.float64)
    known = [t is not None and _seen(t, found["parameters"]) for t in frame["task"]]
    return Prediction(
        seconds=seconds,
        error=np.where(known, error, np.maximum(error, float(found["error"]["unseen"]))),
        extrapolated=~np.array(known, dtype=np.bool_),
    )


def _seen(task: Task, p: Fitted) -> bool:
    if task.kind in ("transfer", "start"):
        return task.tool in p["tools"] and task.store in p["stores"]
    return task.kind != "loader" or task.phase in p["stall"]


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """Bytes over the data sheet's rate of the store; for training that loads, over what it asks for."""
    out = np.full(len(frame), np.nan)
    stores = stores_of(frame["task"], catalog)
    for i, task in enumerate(frame["task"]):
        if task is None or task.kind in ("phase", "metadata"):
            continue
        if task.kind == "loader":
            out[i] = task.nbytes / loading_B_per_s(task.accelerators, task.batch_B, task.compute_s, 0.0)
            continue
        store = array(stores[task.store], task.drives)
        sheet = store.write_B_per_s if task.write else store.read_B_per_s
        out[i] = task.nbytes / (task.store_B_per_s or sheet)
    return out


TABLE = TableSpec(
    columns=(
        "hardware",
        "storage",
        "n_gpus",
        "workload",
        "model_or_object",
        "size_gb",
        "tool",
        "concurrency",
        "metric",
        "value",
        "unit",
    ),
    numbers=("value",),
    measured="seconds",
    groups=("source", "class", "tool"),
    predict=predict,
    roofline=roofline,
    prepare=prepare,
)
