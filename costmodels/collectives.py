"""Collectives in closed form, and the choice among them that NCCL would make.

A collective is described by how much crosses each kind of port for each byte of its volume, how fast that can go, and how
long its steps take. Ring and tree volumes: Thakur, Rabenseifner and Gropp 2005; double binary trees: Sanders, Speck and
Traff 2009; in a node with a switch that reduces (NVLink SHARP) every rank sends and receives the buffer once.
"""

from dataclasses import dataclass
from math import ceil, inf, log2

STEPS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "broadcast": 1, "barrier": 2, "all_to_all": 1}

PROTOCOLS = ((1.0, 0.45), (1.6, 0.9), (3.0, 1.0))
"""NCCL's LL, LL128 and Simple: steps take the first factor longer, links reach the second share of their bandwidth."""

TREE_SHARE = 0.92
NVLS_SHARE = 0.75
"""Bandwidth of trees and of reducing in the switch, as a share of what a ring reaches on the same ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where the members of a communicator are: `size` ranks on `nodes` hosts, the rates of the slowest ports, step latencies.

    `node_B_per_s` and `net_B_per_s` are inf where the communicator uses no such port; `rails` counts the network ports that a
    host's members bring, `node_s` and `net_s` are the latencies of one step inside a host and between hosts.
    """

    size: int
    nodes: int
    rails: float
    node_B_per_s: float
    net_B_per_s: float
    node_s: float
    net_s: float
    in_switch: bool = False  # the one switch between all members can reduce


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Takes latency_s + volume_B / cap_B_per_s alone; a byte of volume is `node_weight` bytes over each member's port inside
    the host and `net_weight` over each network port."""

    algorithm: str
    latency_s: float
    volume_B: float
    cap_B_per_s: float
    node_weight: float
    net_weight: float

    @property
    def seconds(self) -> float:
        return self.latency_s + (self.volume_B / self.cap_B_per_s if self.volume_B else 0.0)


def best(kind: str, nbytes: float, dtype: str, shape: Shape) -> Choice:
    """The fastest algorithm and protocol for a message of `nbytes` (as nccl-tests counts it)."""
    if shape.size == 1:
        return Choice(algorithm="none", latency_s=0.0, volume_B=0.0, cap_B_per_s=inf, node_weight=0.0, net_weight=0.0)
    if kind == "all_to_all":
        return _all_to_all(nbytes, shape)
    choices = [ring(kind, nbytes, shape, slow, share) for slow, share in PROTOCOLS]
    if kind in ("all_reduce", "broadcast", "barrier"):
        choices += [tree(kind, nbytes, shape, slow, share) for slow, share in PROTOCOLS]
    if kind == "all_reduce" and shape.in_switch and not dtype.startswith("int"):
        choices.append(in_switch(nbytes, shape))
    return min(choices, key=lambda c: c.seconds)


def ring(kind: str, nbytes: float, shape: Shape, slow: float = 1.0, share: float = 1.0) -> Choice:
    """`STEPS` times (n - 1) steps, each moving 1/n of the buffer between neighbours; hosts are entered once for each rail."""
    n = shape.size
    passes = STEPS[kind]
    volume = 0.0 if kind == "barrier" else nbytes if kind == "broadcast" else passes * (n - 1) / n * nbytes
    inner = n - shape.nodes if shape.nodes > 1 else n - 1
    outer = shape.nodes - 1 if shape.nodes > 1 else 0
    latency = passes * slow * (inner * shape.node_s + outer * shape.net_s)
    return _on_ports("ring", latency, volume, share, shape)


def tree(kind: str, nbytes: float, shape: Shape, slow: float = 1.0, share: float = 1.0) -> Choice:
    """Chains inside the hosts, a double binary tree between them: up and down once."""
    n = shape.size
    ways = 1 if kind == "broadcast" else 2
    volume = 0.0 if kind == "barrier" else ways * (n - 1) / n * nbytes
    inner = ceil(n / shape.nodes) - 1
    latency = ways * slow * (inner * shape.node_s + ceil(log2(max(shape.nodes, 1))) * shape.net_s)
    return _on_ports("tree", latency, volume, share * TREE_SHARE, shape)


def in_switch(nbytes: float, shape: Shape) -> Choice:
    """Every rank sends the buffer to the switch and receives the sum."""
    latency = 12 * shape.node_s
    return Choice(
        algorithm="in_switch",
        latency_s=latency,
        volume_B=nbytes,
        cap_B_per_s=shape.node_B_per_s * NVLS_SHARE,
        node_weight=1.0,
        net_weight=0.0,
    )


def _on_ports(algorithm: str, latency_s: float, volume_B: float, share: float, shape: Shape) -> Choice:
    node_weight = 1.0 if shape.size > shape.nodes else 0.0
    net_weight = 1.0 / shape.rails if shape.nodes > 1 else 0.0
    cap = share * min(shape.node_B_per_s if node_weight else inf, shape.net_B_per_s / net_weight if net_weight else inf)
    return Choice(
        algorithm=algorithm,
        latency_s=latency_s,
        volume_B=volume_B,
        cap_B_per_s=cap,
        node_weight=node_weight,
        net_weight=net_weight,
    )


def _all_to_all(nbytes: float, shape: Shape) -> Choice:
    """Every rank sends 1/n of its buffer to every other, all at once."""
    n = shape.size
    volume = (n - 1) / n * nbytes
    local = n / shape.nodes
    far = (n - local) / (n - 1)
    node_weight = (1.0 - far) if shape.nodes < n else 0.0
    net_weight = far * local / shape.rails if shape.nodes > 1 else 0.0
    caps = [
        shape.node_B_per_s / node_weight if node_weight else inf,
        shape.net_B_per_s / net_weight if net_weight else inf,
    ]
    latency = 3.0 * (shape.net_s if shape.nodes > 1 else shape.node_s) + (n - 1) * 0.2e-6
    return Choice(
        algorithm="pairwise",
        latency_s=latency,
        volume_B=volume,
        cap_B_per_s=min(caps),
        node_weight=node_weight,
        net_weight=net_weight,
    )
