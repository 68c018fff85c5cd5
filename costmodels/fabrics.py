"""From the words of a table to links: what joins the ranks of a host, what joins the hosts, and with how many ports.

A published measurement names its fabric in passing: "2x p5.48xlarge, NVSwitch + 32x100Gb EFA/node". The network is the first of
`WORDS` that is there; "32x100Gb" or "8 x 400 Gbit" are the ports of a host. Where nothing is said, hosts of a device have the
network that its vendor's reference design has, and the prediction counts as extrapolated.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from costmodels.catalog import Catalog
from costmodels.errors import DataError
from costmodels.specs import DeviceSpec, LinkSpec

RANKS_PER_HOST = 8
"""Devices of a host whose table names the ports of the host and not how many devices share them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """`near` joins the ranks of a host, `far` joins hosts with `rails` ports that the host's members reach (None, 0 for one
    host). `staged`: what goes beyond `direct` ranks of a host passes its memory. `guessed`: the table does not say."""

    near: LinkSpec
    far: LinkSpec | None = None
    rails: float = 0.0
    staged: bool = False
    direct: int = 2
    guessed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`link` and how many ports a host has at most; None: one for each device."""

    link: str
    ports: float | None = None


WORDS: tuple[tuple[str, Network], ...] = (
    ("a100_dgx", Network(link="ethernet_100g", ports=4)),
    ("h100_dgx", Network(link="infiniband_ndr")),
    ("pairwise_nvlink", Network(link="ethernet_25g", ports=1)),
    ("efa", Network(link="efa_400")),
    ("sharp", Network(link="infiniband_ndr_sharp")),
    ("xdr", Network(link="infiniband_xdr")),
    ("ndr", Network(link="infiniband_ndr")),
    ("cx8", Network(link="infiniband_xdr")),
    ("connectx-8", Network(link="infiniband_xdr")),
    ("cx7", Network(link="infiniband_ndr")),
    ("connectx-7", Network(link="infiniband_ndr")),
    ("hdr100", Network(link="infiniband_edr")),
    ("hdr", Network(link="infiniband_hdr")),
    ("cx6", Network(link="infiniband_hdr")),
    ("edr", Network(link="infiniband_edr")),
    ("cx5", Network(link="infiniband_edr")),
    ("opa", Network(link="omnipath_100")),
    ("omni-path", Network(link="omnipath_100")),
    ("roce", Network(link="roce_400")),
    ("quantum-2", Network(link="infiniband_ndr")),
    ("infiniband", Network(link="infiniband")),
    (" ib", Network(link="infiniband")),
    ("tcpx", Network(link="ethernet_200g")),
    ("ethernet", Network(link="ethernet_100g")),
    ("tcp", Network(link="ethernet_100g")),
)
"""`infiniband`: of the generation that the device's reference design has. The hosts that Vidur profiled do not name their network:
it follows from their rates. a100_dgx: 6 GB/s a rank of a host up to four and no more beyond, as sockets over 100 Gbit/s have it;
pairwise: 25 Gbit/s once buffers are full."""

BY_RATE = {
    "efa": {100: "efa_100", 400: "efa_400"},
    "infiniband": {100: "infiniband_edr", 200: "infiniband_hdr", 400: "infiniband_ndr", 800: "infiniband_xdr"},
    "roce": {100: "roce_100", 200: "roce_200", 400: "roce_400"},
    "ethernet": {
        10: "ethernet_10g",
        25: "ethernet_25g",
        40: "ethernet_40g",
        100: "ethernet_100g",
        200: "ethernet_200g",
        400: "ethernet_400g",
    },
}
REFERENCE = {
    "volta": "infiniband_edr",
    "ampere": "infiniband_hdr",
    "ada": "infiniband_hdr",
    "hopper": "infiniband_ndr",
    "blackwell": "infiniband_ndr",
    "cdna3": "roce_400",
    "cdna4": "roce_400",
}
"""Network of the vendor's reference design, one port for each device, where a table names none."""

RACKS = {"gb200": 72, "gb300": 72}
"""Devices whose peer link joins hosts too, and how many ranks it reaches (NVL72)."""
BRIDGES = {"nvlink3": "nvlink3_bridge", "nvlink4": "nvlink4_bridge"}
UNJOINED = ("a40_pairwise",)
"""Fabrics whose neighbouring ranks do not reach each other: a send between two A40 of Vidur's host goes at 4 GB/s."""
_PORTS = re.compile(r"(?:(\d+)\s*x\s*)?(\d+)\s*(g|t)(?:b|bit|bps|bit/s)?(?![a-z])", re.IGNORECASE)
_RATES, _TOTALS = (10, 25, 40, 50, 100, 200, 400, 800), (1600, 3200, 6400)
"""Gbit/s of a port, and of all ports of a host; other numbers before a G mean something else (GB/s of NVLink)."""


class Places:
    """Devices and fabrics of rows that have been met; `fitted` links unless there is another table of them."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.device = lru_cache(maxsize=None)(self._device)
        self.fabric = lru_cache(maxsize=None)(self._fabric)

    def _device(self, text: str) -> DeviceSpec | None:
        """By name, or by the first word of a source (`...: h100_sxm/comm/nccl/2.23`) that is one."""
        for word in [text, *text.replace("/", " ").split(), text.split("(")[0]]:
            try:
                return self.catalog.device(word)
            except DataError:
                continue
        return None

    def _fabric(self, device: str, words: str, ranks: float, nodes: float) -> Fabric:
        """Of `ranks` on `nodes` hosts; one host where a rack's switch joins them all."""
        spec, local = self.catalog.device(device), ranks / nodes
        near, staged = self._near(spec, words, local)
        direct = 1 if any(w in words for w in UNJOINED) else 2
        if nodes == 1 or (ranks <= RACKS.get(spec.name, 0) and _network(words) is None):
            return Fabric(near=near, staged=staged, direct=direct)
        network = _network(words)
        guessed = network is None
        if network is None or network.link == "infiniband":
            network = Network(link=REFERENCE.get(spec.architecture, "infiniband_hdr"))
        far, ports = self._far(network, words)
        most = network.ports if network.ports is not None else ports if ports is not None else local
        share = max(most / RANKS_PER_HOST, 1.0) if network.ports is None else 1.0
        rails = max(min(most, local * share), 1.0)
        return Fabric(near=near, far=far, rails=rails, staged=staged, direct=direct, guessed=guessed)

    def _near(self, spec: DeviceSpec, words: str, local: float) -> tuple[LinkSpec, bool]:
        """Link inside a host, and whether it passes the memory of the host."""
        peer = self.catalog.link(spec.peer_link) if spec.peer_link else None
        host = self.catalog.link(spec.host_link or "pcie4")
        if peer is not None and "pairwise" in words and peer.joins is None:
            peer = self.catalog.link(BRIDGES.get(peer.name, peer.name))
        apart = any(w in words for w in UNJOINED) or "no nvlink" in words
        if peer is None or apart:
            return host, True
        return (peer, False) if peer.joins is None or local <= peer.joins else (host, False)

    def _far(self, network: Network, words: str) -> tuple[LinkSpec, float | None]:
        """Link between hosts and the ports of a host, None where words give none: "8x400Gb" are 8 ports, or as many of the link's
        own as carry the same."""
        count, rate = (None, 0) if network.ports is not None else _ports(words)
        family = next((f for f in BY_RATE if network.link.startswith(f)), "")
        name = BY_RATE.get(family, {}).get(rate, network.link)
        total = rate * (count or 1)
        if network.link.endswith("sharp") or (family == "efa" and total >= 1600):
            name = network.link  # the generation of the host, whose ports may be bundles of slower ones
        link = self.catalog.link(name)
        return link, max(total * 1e9 / 8 / link.B_per_s, 1.0) if count else None


def _network(words: str) -> Network | None:
    """The first that the words name."""
    return next((network for word, network in WORDS if word in f" {words}"), None)


def _ports(words: str) -> tuple[int | None, int]:
    """How many ports a host has, None where words give the rate of one at most, and Gbit/s of one; 0 where they give none."""
    for count, rate, unit in _PORTS.findall(words):
        gigabit = int(rate) * (1000 if unit.lower() == "t" else 1)
        if gigabit in _TOTALS and not count:
            return 1, gigabit
        if gigabit in _RATES:
            return int(count) if count else None, gigabit
    return None, 0
