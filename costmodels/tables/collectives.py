"""Predictions for tables of measured collectives: columns device, fabric, n_ranks, n_nodes, op, nbytes; seconds come out."""

from typing import TYPE_CHECKING

import numpy as np

from costmodels import fitted as tables
from costmodels.catalog import Catalog
from costmodels.collective_errors import errors
from costmodels.collective_rows import Links, Rows, rows_of, times
from costmodels.collectives import constants
from costmodels.point_to_point import send_constants
from costmodels.ports import fitted_link, is_fitted
from costmodels.prediction import Floats, Prediction
from costmodels.tables.table import Fitted, TableSpec

if TYPE_CHECKING:
    import pandas as pd


def predict(frame: "pd.DataFrame", catalog: Catalog, fitted: Fitted | None = None) -> Prediction:
    """(rows,) seconds, NaN for unknown devices and ops. `fabric` and `source` may lack.

    A row without a device is looked up by the words of its source; data types are not in the table, so that all-reduce is taken
    to be of a type that switches can reduce, but where a source measured one of each.
    """
    found = tables.load("collectives") if fitted is None else fitted
    rows = rows_of(frame, catalog)
    links = Links.of(tuple(fitted_link(link, found) for link in rows.links))
    hosts, default = found["hosts"], found["parameters"]["staged_B_per_s"]
    staged = np.array([float(hosts.get(name, default)) for name in rows.hosts], dtype=np.float64)
    eager_s = float(found["parameters"]["eager_s"])
    seconds, wait_s = times(rows, links, constants(found), send_constants(found), staged, eager_s)
    unseen = _unseen(rows, found)
    return Prediction(
        seconds=seconds, error=errors(rows.op, rows.far >= 0, wait_s / seconds, unseen, found), extrapolated=unseen
    )


def _unseen(rows: Rows, found: Fitted) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """(rows,) whether a link of the row was not measured, the host not, or the network is a guess."""
    link = np.array([not is_fitted(x, found) for x in rows.links] + [False])  # the last one is link -1: none
    host = np.array([x not in found["hosts"] for x in rows.hosts] + [False])
    inside = (rows.n > rows.nodes) & rows.known
    return np.asarray(rows.guessed | ~rows.known | (link[rows.near] & inside) | link[rows.far] | host[rows.host])


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """Bytes that a rank must send over the data sheet's rate of its port; where the switch can sum, it sends its buffer once."""
    rows = rows_of(frame, catalog)
    rate = np.array([x.B_per_s for x in rows.links] + [np.nan])
    sums = np.array([x.reduces_in_network for x in rows.links] + [False])
    link = np.where(rows.far >= 0, rows.far, rows.near)
    share = (rows.n - 1) / rows.n
    reduced = np.where(sums[link], np.minimum(2.0 * share, 1.0), 2.0 * share)
    parts = np.where(rows.op == "all_reduce", reduced, share)
    parts = np.where(np.isin(rows.op, ("send_recv", "broadcast")), 1.0, parts)
    return np.asarray(parts * rows.nbytes / rate[link])


TABLE = TableSpec(
    columns=("device", "n_ranks", "n_nodes", "op", "nbytes", "time_s"),
    numbers=("n_ranks", "nbytes", "time_s"),
    measured="time_s",
    groups=("device", "op", "fabric", "source"),
    predict=predict,
    roofline=roofline,
)
