"""Rows of a table of collectives as arrays, and their seconds: what prediction and fit share.

`nbytes` is what nccl-tests calls the message size: for all_gather and reduce_scatter the whole tensor. (With it the measurements
give a bus bandwidth, nbytes / seconds (n - 1) / n, that grows with n towards that of all-reduce; with a rank's part it would not.)
oneCCL's all-gather counts a rank's part: only so are its rates those of all-reduce and reduce-scatter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costmodels.catalog import Catalog
from costmodels.collectives import Constants, Shape, reach, seconds, staged_rate
from costmodels.fabrics import Fabric, Places
from costmodels.point_to_point import RDMA, SendConstants
from costmodels.prediction import Bools, Floats
from costmodels.specs import LinkSpec

if TYPE_CHECKING:
    import pandas as pd

Ints = NDArray[np.int64]

OPS: Mapping[str, str] = {
    "all_reduce": "all_reduce",
    "allreduce": "all_reduce",
    "all_gather": "all_gather",
    "allgather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "broadcast": "broadcast",
    "send_recv": "send_recv",
    "sendrecv": "send_recv",
}
EAGER = ("vidur", "all_reduce_bench", "stas00")
"""Sources that time single collectives launched from Python: whoever comes first waits for the last, and is timed meanwhile."""
MIXED = "aiconfigurator"
"""Its all-reduce is in half precision and in int8, and the table does not say which row is which."""
TOKENS, EXPERTS, HIDDEN = 128, 8, 7168
"""What DeepEP's low-latency kernels were measured with: tokens of a rank, experts of a token, bytes of a token in fp8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Numbers of the links that rows use, (links,) each."""

    B_per_s: Floats
    latency_s: Floats
    start_s: Floats
    ramp_s: Floats
    efficiency: Floats

    @classmethod
    def of(cls, links: tuple[LinkSpec, ...]) -> "Links":
        return cls(**{name: np.array([getattr(x, name) for x in links], dtype=np.float64) for name in cls.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """(rows,) arrays; `near` and `far` point into `links`, -1 where there is none; `host` into `hosts`, devices whose host's
    memory carries everything, -1 where it does not; `reach` is the share of a port that the ranks of a host use. `piped`: moves
    its bytes in chunks, as NCCL does. `op` is empty where the model has nothing to say."""

    op: NDArray[np.str_]
    n: Floats
    nodes: Floats
    nbytes: Floats
    near: Ints
    far: Ints
    rails: Floats
    reach: Floats
    host: Ints
    switched: Bools
    eager: Bools
    mixed: Bools
    piped: Bools
    guessed: Bools
    links: tuple[LinkSpec, ...]
    hosts: tuple[str, ...]

    @property
    def known(self) -> Bools:
        return np.asarray(self.op != "")


def rows_of(frame: "pd.DataFrame", catalog: Catalog) -> Rows:
    """Every row of `frame`; columns device, source and fabric may lack. A row without a device is looked up by its source."""
    texts = [_texts(frame, column) for column in ("device", "source", "fabric", "op")]
    n, nodes, nbytes = (frame[c].to_numpy(dtype=np.float64) for c in ("n_ranks", "n_nodes", "nbytes"))
    keys = list(zip(*texts, n.tolist(), nodes.tolist(), strict=True))
    distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    at = np.array([distinct[key] for key in keys], dtype=np.int64)
    places = Places(catalog)
    met = [_measured(places, *key) or NOWHERE for key in distinct]
    links = {link.name: link for m in met if m.fabric for link in (m.fabric.near, m.fabric.far) if link is not None}
    hosts = list(dict.fromkeys(m.host for m in met if m.host))

    def column(values: list[Any], dtype: type) -> Any:
        return np.array(values, dtype=dtype)[at] if values else np.empty(0, dtype=dtype)

    number = {name: i for i, name in enumerate(links)}
    fabrics = [m.fabric for m in met]
    size = np.where(
        np.isnan(nbytes), column([m.usual_B for m in met], float), nbytes * column([m.parts for m in met], float)
    )
    op = column([m.op for m in met], str)
    return Rows(
        op=np.where(size > 0, op, ""),
        n=column([m.n for m in met], float),
        nodes=column([m.nodes for m in met], float),
        nbytes=np.where(size > 0, size, 1.0),
        near=column([number[f.near.name] if f else -1 for f in fabrics], int),
        far=column([number[f.far.name] if f and f.far else -1 for f in fabrics], int),
        rails=column([max(f.rails, 1.0) if f else 1.0 for f in fabrics], float),
        reach=column([reach(f.near, m.n / m.nodes) if f else 1.0 for f, m in zip(fabrics, met, strict=True)], float),
        host=column([hosts.index(m.host) if m.host else -1 for m in met], int),
        switched=column([bool(f and f.near.switched and f.near.reduces_in_network) for f in fabrics], bool),
        eager=column([m.eager for m in met], bool),
        mixed=column([m.mixed for m in met], bool),
        piped=column([m.piped for m in met], bool),
        guessed=column([bool(f and f.guessed) for f in fabrics], bool),
        links=tuple(links.values()),
        hosts=tuple(hosts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What rows have in common that differ in size only. `host`: the device, where the memory of its host carries everything;
    `parts` turns bytes into those that nccl-tests would count, `usual_B` are they where a row does not say."""

    op: str
    n: float
    nodes: float
    fabric: Fabric | None
    host: str = ""
    eager: bool = False
    mixed: bool = False
    piped: bool = True
    parts: float = 1.0
    usual_B: float = 0.0


NOWHERE = _Measured(op="", n=2.0, nodes=1.0, fabric=None)
"""Rows that the model has nothing to say about."""


def _texts(frame: "pd.DataFrame", column: str) -> list[str]:
    if column not in frame.columns:
        return [""] * len(frame)
    return [text if isinstance(text, str) else "" for text in frame[column].to_list()]


def _measured(
    places: Places, device: str, source: str, fabric: str, op: str, n: float, nodes: float
) -> _Measured | None:
    """None for unknown devices and ops, and for impossible numbers of ranks."""
    experts = op.startswith("MoE low-latency")
    kind, known, said = "all_to_all" if experts else OPS.get(op), places.device(device or source), source.lower()
    if known is None or kind is None or not (n >= 2 and 1 <= nodes <= n):
        return None
    place = places.fabric(known.name, fabric.lower(), n, nodes)
    alone = place.far is None
    return _Measured(
        op=kind,
        n=n,
        nodes=1.0 if alone else nodes,
        fabric=place,
        host=known.name if place.staged and n / nodes > place.direct else "",
        eager=kind != "send_recv" and any(word in said for word in EAGER),
        mixed=MIXED in said and kind == "all_reduce",
        piped=not experts,
        parts=n if kind == "all_gather" and "oneccl" in said else 1.0,
        usual_B=TOKENS * EXPERTS * HIDDEN * (2.0 if "BF16" in op else 1.0 + 4 / 128) if experts else 0.0,
    )


def times(
    rows: Rows, links: Links, shared: Constants, send: SendConstants, staged_B_per_s: Floats, eager_s: float
) -> tuple[Floats, Floats]:
    """(rows,) seconds, NaN where nothing is known, and the part that does not grow with size. `staged_B_per_s`: (hosts,)."""
    total, wait = np.full(len(rows.n), np.nan), np.full(len(rows.n), np.nan)
    if not rows.links:
        return total, wait
    shape = _shape(rows, links, staged_B_per_s, shared)
    for kind in np.unique(rows.op[rows.known]).tolist():
        at = np.flatnonzero(rows.op == kind)
        if kind == "send_recv":
            total[at], wait[at] = _sends(rows, at, links, _staged(rows, links, staged_B_per_s, shared, 1.0), send)
            continue
        part = Shape(**{f: getattr(shape, f)[at] for f in Shape.__slots__})
        total[at], wait[at] = seconds(kind, rows.nbytes[at], True, part, shared)
        mixed = rows.mixed[at]
        if mixed.any():
            other, _ = seconds(kind, rows.nbytes[at], False, part, shared)
            total[at] = np.where(mixed, np.sqrt(total[at] * other), total[at])
    waiting = rows.eager & (total < eager_s)
    return np.where(waiting, eager_s, total), np.where(waiting, eager_s, wait)


def _shape(rows: Rows, links: Links, staged_B_per_s: Floats, shared: Constants) -> Shape:
    """Arrays of (rows,): as `Shape` says."""
    local = rows.n / rows.nodes
    away, inside = rows.far >= 0, local > 1
    return Shape(
        size=rows.n,
        nodes=rows.nodes,
        rails=rows.rails,
        node_B_per_s=_staged(rows, links, staged_B_per_s, shared, shared.ring_share),
        net_B_per_s=np.where(away, (links.B_per_s * links.efficiency)[rows.far], np.inf),
        node_s=np.where(inside, links.latency_s[rows.near], 0.0),
        net_s=np.where(away, links.latency_s[rows.far], 0.0),
        in_switch=rows.switched,
        start_s=np.maximum(
            np.where(inside, links.start_s[rows.near], 0.0), np.where(away, links.start_s[rows.far], 0.0)
        ),
        ramp_s=np.where(inside & rows.piped, links.ramp_s[rows.near], 0.0),
        net_ramp_s=np.where(away & rows.piped, links.ramp_s[rows.far], 0.0),
    )


def _staged(rows: Rows, links: Links, staged_B_per_s: Floats, shared: Constants, share: float) -> Floats:
    """(rows,) bytes per second of a port inside the host, less where the memory of the host carries everything."""
    rate = (links.B_per_s * links.efficiency)[rows.near] * share * rows.reach
    if not len(staged_B_per_s):
        return np.asarray(rate)
    through = staged_rate(staged_B_per_s[rows.host], rows.n / rows.nodes, shared.staged_power)
    return np.asarray(np.where(rows.host >= 0, np.minimum(rate, through), rate))


def _sends(rows: Rows, at: Ints, links: Links, near_B_per_s: Floats, send: SendConstants) -> tuple[Floats, Floats]:
    away = rows.far[at] >= 0
    port = np.where(away, rows.far[at], rows.near[at])
    rdma = np.array([x.kind in RDMA for x in rows.links])[port]
    net = (links.B_per_s * links.efficiency)[port] * np.where(rdma, send.send_share, 1.0)
    wait = links.start_s[port] + links.latency_s[port]
    return wait + rows.nbytes[at] / np.where(away, net, near_B_per_s[at]), wait
