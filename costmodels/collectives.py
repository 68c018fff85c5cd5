"""Collectives in closed form, and the choice among them that NCCL would make.

A collective is described by how much crosses each kind of port for each byte of its volume, how fast that can go, and how
long its steps take. Volumes of rings and trees: Thakur, Rabenseifner and Gropp 2005; double binary trees: Sanders, Speck and
Traff 2009; in a host with a switch that reduces (NVLink SHARP) every rank sends and receives the buffer once.

`ring`, `tree`, `hierarchical`, `in_switch` and `all_to_all` are the closed forms. `realised` adds what measurements show on top
of them: the start of a collective (launch and handshake), the copy of a rank's own part, and the filling of the pipeline
(`point_to_point.filled_rate`), whose square root is the lower envelope of NCCL's protocols: LL, LL128 and Simple trade bandwidth
for latency, each in its own range of sizes.
"""

from dataclasses import dataclass, replace
from math import ceil, inf, log2

from costmodels.point_to_point import filled_rate
from costmodels.specs import LinkSpec

STEPS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "broadcast": 1, "barrier": 2, "all_to_all": 1}

# Fitted to NVIDIA aiconfigurator's NCCL measurements (2 to 8 of A100, H100, H200 and B200 in one host, Apache-2.0) together with
# `start_s`, `ramp_s`, `latency_s` and `efficiency` of each generation of NVLink: median error 6 %; rows of one library release
# left out and predicted from the others: 6 to 7 %.
OWN_COPY = 0.35
"""Time to copy a byte of a rank's own part, as a share of the time of a byte over its port."""
EXCHANGE_STEPS = 3.3
"""Steps that an all-to-all takes for its first bytes, at any number of ranks in a host."""
SWITCH_STEPS, SWITCH_SHARE, SWITCH_RAMP = 14.0, 0.71, 3.5
"""Reducing in the switch: steps for the first bytes, share of the bandwidth of a ring's ports, ramp as a multiple of theirs."""
SWITCH_RANKS = 5
"""Fewest ranks in a host for which reducing in the switch beats rings."""
SWITCH_DTYPES = ("float32", "float16", "bfloat16")
BRIDGE_PORTS = 2.0
"""Ports of PCIe whose full rate the bridges and the memory of a host carry at once (NCCL on two, four and eight L40S)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where the members of a communicator are: `size` ranks on `nodes` hosts, the rates of the slowest ports, step latencies.

    `node_B_per_s` and `net_B_per_s` are inf where the communicator uses no such port; `rails` counts the network ports that a
    host's members bring, `node_s` and `net_s` are the latencies of one step inside a host and between hosts. `in_switch`: the
    switch between the members of a host can reduce. `start_s` and `ramp_s` as in `LinkSpec`, of the slowest link.
    """

    size: int
    nodes: int
    rails: float
    node_B_per_s: float
    net_B_per_s: float
    node_s: float
    net_s: float
    in_switch: bool = False
    start_s: float = 0.0
    ramp_s: float = 0.0

    @property
    def per_node(self) -> int:
        """Most members on one host, if they are spread evenly."""
        return ceil(self.size / self.nodes)


def port_rate(link: LinkSpec, members: int, *, staged: bool) -> float:
    """Bytes per second that each of `members` ranks of a host gets when all of them send; `staged` if devices cannot reach each
    other's memory and PCIe carries everything through that of the host."""
    share = min(1.0, BRIDGE_PORTS / members) if staged and link.kind == "pcie" else 1.0
    return link.B_per_s * link.efficiency * share


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Takes latency_s + volume_B / cap_B_per_s alone; a byte of volume is `node_weight` bytes over each member's port inside
    the host and `net_weight` over each network port. `own_B` are bytes that a rank copies for itself."""

    algorithm: str
    latency_s: float
    volume_B: float
    cap_B_per_s: float
    node_weight: float
    net_weight: float
    own_B: float = 0.0

    @property
    def seconds(self) -> float:
        return self.latency_s + (self.volume_B / self.cap_B_per_s if self.volume_B else 0.0)


NOTHING = Choice(algorithm="none", latency_s=0.0, volume_B=0.0, cap_B_per_s=inf, node_weight=0.0, net_weight=0.0)


def best(kind: str, nbytes: float, dtype: str, shape: Shape) -> Choice:
    """The fastest algorithm for a message of `nbytes` (as nccl-tests counts it), with all that measurements add to it."""
    if shape.size == 1:
        return NOTHING
    if kind == "all_to_all":
        return realised(all_to_all(nbytes, shape), shape)
    choices = [ring(kind, nbytes, shape)]
    if kind in ("all_reduce", "barrier") and shape.nodes > 1:
        choices.append(tree(kind, nbytes, shape))
    if kind == "all_reduce" and shape.in_switch and dtype in SWITCH_DTYPES and shape.per_node >= SWITCH_RANKS:
        choices.append(hierarchical(nbytes, shape) if shape.nodes > 1 else in_switch(nbytes, shape))
    return min((realised(c, shape) for c in choices), key=lambda c: c.seconds)


def realised(choice: Choice, shape: Shape) -> Choice:
    """The closed form with its start, the copy of a rank's own part and the filling of its pipeline; see the module.

    Bytes still on their way are volume: the rate falls, so that links are asked for what they really carry.
    """
    latency_s = choice.latency_s + shape.start_s
    if not choice.volume_B or choice.cap_B_per_s == inf:
        return replace(choice, latency_s=latency_s)
    ramp_s = shape.ramp_s * (SWITCH_RAMP if choice.algorithm in ("in_switch", "hierarchical") else 1.0)
    moving_s = (choice.volume_B + OWN_COPY * choice.own_B) / choice.cap_B_per_s
    return replace(choice, latency_s=latency_s, cap_B_per_s=filled_rate(moving_s, choice.volume_B, ramp_s))


def ring(kind: str, nbytes: float, shape: Shape) -> Choice:
    """`STEPS` times (n - 1) steps, each moving 1/n of the buffer between neighbours; hosts are entered once for each rail.

    Alone in one host: all-reduce takes 2 (n - 1) (latency + nbytes / n / B).
    """
    n, passes = shape.size, STEPS[kind]
    volume = 0.0 if kind == "barrier" else nbytes if kind == "broadcast" else passes * (n - 1) / n * nbytes
    own_B = 0.0 if kind in ("barrier", "broadcast") else nbytes / n
    latency = passes * ((n - shape.nodes) * shape.node_s + (shape.nodes - 1) * shape.net_s)
    near = 1.0 if n > shape.nodes else 0.0
    return _on_ports("ring", latency, volume, near, 1.0 / shape.rails, shape, own_B=own_B)


def tree(kind: str, nbytes: float, shape: Shape) -> Choice:
    """A chain in each host and a double binary tree between hosts, up and down: every rank but the chain's ends passes the
    buffer on twice; so does every host but where there are two, which only exchange halves."""
    near = 1.0 if shape.size > shape.nodes else 0.0
    far = (0.5 if shape.nodes == 2 else 1.0) / shape.rails
    volume = 0.0 if kind == "barrier" else 2 * nbytes
    latency = 2 * ((shape.per_node - 1) * shape.node_s + ceil(log2(shape.nodes)) * shape.net_s)
    return _on_ports("tree", latency, volume, near, far, shape)


def in_switch(nbytes: float, shape: Shape) -> Choice:
    """Every rank sends the buffer to the switch of its host and receives the sum (NVLink SHARP)."""
    return _on_ports("in_switch", SWITCH_STEPS * shape.node_s, nbytes, 1 / SWITCH_SHARE, 0.0, shape)


def hierarchical(nbytes: float, shape: Shape) -> Choice:
    """Reduced by the switch in each host and by a double binary tree between hosts (NCCL's NVLSTree)."""
    far = (1.0 if shape.nodes == 2 else 2.0) / shape.rails
    latency = SWITCH_STEPS * shape.node_s + 2 * ceil(log2(shape.nodes)) * shape.net_s
    return _on_ports("hierarchical", latency, nbytes, 1 / SWITCH_SHARE, far, shape)


def all_to_all(nbytes: float, shape: Shape) -> Choice:
    """Every rank sends 1/n of its buffer to every other, all at once."""
    n = shape.size
    local = n / shape.nodes
    far = (n - local) / (n - 1)
    net_weight = far * local / shape.rails
    latency = EXCHANGE_STEPS * (shape.net_s if shape.nodes > 1 else shape.node_s)
    return _on_ports(
        "pairwise", latency, (n - 1) / n * nbytes, 1.0 - far if local > 1 else 0.0, net_weight, shape, own_B=nbytes / n
    )


def _on_ports(
    algorithm: str, latency_s: float, volume_B: float, near: float, far: float, shape: Shape, *, own_B: float = 0.0
) -> Choice:
    """The rate that the slower kind of port allows; `near` and `far` are bytes over them for each byte of volume."""
    far = far if shape.nodes > 1 else 0.0
    cap = min(shape.node_B_per_s / near if near else inf, shape.net_B_per_s / far if far else inf)
    return Choice(
        algorithm=algorithm,
        latency_s=latency_s,
        volume_B=volume_B,
        cap_B_per_s=cap,
        node_weight=near,
        net_weight=far,
        own_B=own_B,
    )
