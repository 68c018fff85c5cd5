"""Predictions for tables of measured collectives: columns device, fabric, n_ranks, n_nodes, op, nbytes; seconds come out.

`nbytes` is what nccl-tests calls the message size: for all_gather and reduce_scatter the whole tensor. (With it the measurements
give a bus bandwidth, nbytes / seconds (n - 1) / n, that grows with n towards that of all-reduce; with a rank's part it would not.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from costmodels.catalog import Catalog
from costmodels.collectives import Shape, best, port_rate
from costmodels.errors import DataError
from costmodels.point_to_point import send_recv
from costmodels.prediction import Floats, Prediction
from costmodels.specs import DeviceSpec, LinkSpec
from costmodels.tables.table import Fitted, TableSpec

if TYPE_CHECKING:
    import pandas as pd

Links = tuple[LinkSpec, LinkSpec | None, float]
"""The link inside a host, that between hosts, and how many ranks share a port of it."""

OPS: Mapping[str, str] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "broadcast": "broadcast",
    "send_recv": "send_recv",
}


@dataclass(frozen=True, slots=True)
class Network:
    """Between hosts: a port of `link` for every `ranks_per_port` ranks."""

    link: str
    ranks_per_port: float = 1.0


NETWORKS: tuple[tuple[str, Network], ...] = (
    ("a100_dgx", Network("efa_100", 2.0)),
    ("h100_dgx", Network("infiniband_ndr")),
    ("pairwise_nvlink", Network("ethernet_25g")),
    ("efa", Network("efa_400")),
    ("sharp", Network("infiniband_ndr_sharp")),
    ("ndr", Network("infiniband_ndr")),
    ("cx7", Network("infiniband_ndr")),
    ("hdr", Network("infiniband_hdr")),
    ("edr", Network("infiniband_edr")),
    ("opa", Network("omnipath_100")),
    ("omni-path", Network("omnipath_100")),
)
"""Words in a table's `fabric` that name the network between hosts, the first that is there. The hosts that Vidur profiled do not
name it: it follows from their bandwidth of large messages (a100_dgx: two GPUs share 100 Gbit/s; pairwise: 25 Gbit/s)."""


def predict(frame: "pd.DataFrame", catalog: Catalog, _fitted: Fitted | None = None) -> Prediction:
    """(rows,) seconds, NaN for unknown devices, ops and networks. `fabric` and `source` may lack.

    A row without a device is looked up by the words of its source; data types are not in the table, so that all-reduce is taken
    to be of a type that switches can reduce.
    """
    columns = [frame[c] if c in frame.columns else [None] * len(frame) for c in ("device", "source", "fabric")]
    numbers = [frame[c].to_numpy(dtype=np.float64) for c in ("n_ranks", "n_nodes", "nbytes")]
    places = _Places(catalog)
    rows = zip(*columns, frame["op"], *(n.tolist() for n in numbers), strict=True)
    return Prediction.plain(np.array([places.seconds(*row) for row in rows], dtype=np.float64))


class _Places:
    """Devices, links and shapes of rows that have been met."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.device = lru_cache(maxsize=None)(self._device)
        self.links = lru_cache(maxsize=None)(self._links)

    def seconds(
        self, device: object, source: object, fabric: object, op: object, n: float, nodes: float, B: float
    ) -> float:
        known = self.device(device if isinstance(device, str) else source)
        if known is None or op not in OPS or not (n >= 2 and 1 <= nodes <= n and B > 0):
            return float("nan")
        links = self.links(known.name, str(fabric).lower(), n / nodes, nodes > 1)
        if links is None:
            return float("nan")
        near, far, _ = links
        if op == "send_recv":
            return send_recv(B, far or near, inside_host=far is None)
        return best(OPS[str(op)], B, "float16", _shape(known, int(n), int(nodes), links)).seconds

    def at_the_rate(
        self, device: object, source: object, fabric: object, op: object, n: float, nodes: float, B: float
    ) -> float:
        known = self.device(device if isinstance(device, str) else source)
        if known is None or op not in OPS or not (n >= 2 and 1 <= nodes <= n and B > 0):
            return float("nan")
        links = self.links(known.name, str(fabric).lower(), n / nodes, nodes > 1)
        if links is None:
            return float("nan")
        near, far, _ = links
        steps = {"send_recv": n, "broadcast": n, "all_reduce": 2 * (n - 1)}.get(OPS[str(op)], n - 1)
        return float(steps / n * B / (far or near).B_per_s)

    def _device(self, text: object) -> DeviceSpec | None:
        """By name, or by the first word of a source (`...: h100_sxm/comm/nccl/2.23`) that is one."""
        words = [str(text), *str(text).replace("/", " ").split()]
        for word in words:
            try:
                return self.catalog.device(word)
            except DataError:
                continue
        return None

    def _links(self, device: str, fabric: str, local: float, away: bool) -> Links | None:
        """None where the table does not tell the network between hosts."""
        spec = self.catalog.device(device)
        peer = self.catalog.link(spec.peer_link) if spec.peer_link else None
        if "pairwise_nvlink" in fabric and peer is not None and peer.joins is None:
            bridges = {"nvlink3": "nvlink3_bridge", "nvlink4": "nvlink4_bridge"}
            peer = self.catalog.link(bridges.get(peer.name, peer.name))
        if peer is None or (peer.joins is not None and local > peer.joins):
            peer = self.catalog.link(spec.host_link or "pcie4")
        if not away:
            return peer, None, 1.0
        network = next((network for word, network in NETWORKS if word in fabric), None)
        if network is None:
            return None
        return peer, self.catalog.link(network.link), network.ranks_per_port


def _shape(device: DeviceSpec, n: int, nodes: int, links: Links) -> Shape:
    near, far, ranks_per_port = links
    local = n // nodes
    used = [link for link in (near if local > 1 else None, far) if link is not None]
    return Shape(
        size=n,
        nodes=nodes,
        rails=max(local / ranks_per_port, 1.0),
        node_B_per_s=port_rate(near, local, staged=device.peer_link is None),
        net_B_per_s=far.B_per_s * far.efficiency if far is not None else np.inf,
        node_s=near.latency_s,
        net_s=far.latency_s if far is not None else 0.0,
        in_switch=near.switched and near.reduces_in_network,
        start_s=max(link.start_s for link in used),
        ramp_s=max(link.ramp_s for link in used),
    )


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """Bytes that a rank must send over the data sheet's rate of its port."""
    columns = [frame[c] if c in frame.columns else [None] * len(frame) for c in ("device", "source", "fabric")]
    numbers = [frame[c].to_numpy(dtype=np.float64) for c in ("n_ranks", "n_nodes", "nbytes")]
    places = _Places(catalog)
    rows = zip(*columns, frame["op"], *(n.tolist() for n in numbers), strict=True)
    return np.array([places.at_the_rate(*row) for row in rows], dtype=np.float64)


TABLE = TableSpec(
    columns=("device", "n_ranks", "n_nodes", "op", "nbytes", "time_s"),
    numbers=("n_ranks", "nbytes", "time_s"),
    measured="time_s",
    groups=("device", "op", "fabric", "source"),
    predict=predict,
    roofline=roofline,
)
