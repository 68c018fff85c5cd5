"""Collectives in closed form, and the choice among them that NCCL would make.

A collective is described by how much crosses each kind of port for each byte of its volume, how fast that can go, and how
long its steps take. Volumes of rings and trees: Thakur, Rabenseifner and Gropp 2005; double binary trees: Sanders, Speck and
Traff 2009; in a host with a switch that reduces (NVLink SHARP) every rank sends and receives the buffer once.

`ring`, `tree`, `hierarchical`, `in_switch` and `all_to_all` are the closed forms. `realised` adds what measurements show on top
of them: the start of a collective (launch and handshake), the copy of a rank's own part, and the filling of the pipeline
(`point_to_point.filled_rate`), whose square root is the lower envelope of NCCL's protocols: LL, LL128 and Simple trade bandwidth
for latency, each in its own range of sizes. All take numbers or arrays of one shape: `best` decides for one message,
`seconds` for whole tables. The constants are fitted (`costmodels/fit/collectives.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from math import inf
from typing import Any

import numpy as np

from costmodels import fitted as tables
from costmodels.point_to_point import filled_rate
from costmodels.prediction import Bools, Floats
from costmodels.specs import LinkSpec

Number = Any
"""A float, or an array of floats of one shape with all the others."""

STEPS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "broadcast": 1, "barrier": 2, "all_to_all": 1}
SWITCH_RANKS = 5
"""Fewest ranks in a host for which reducing in the switch beats rings."""
SWITCH_DTYPES = ("float32", "float16", "bfloat16")
MESHES = {"infinity_fabric_mi300": 7, "infinity_fabric_mi350": 7, "gaudi2_mesh": 7, "gaudi3_mesh": 7}
"""Links whose port is divided among so many neighbours, each joined by its own wires."""
DIRECT = 2
"""Most ranks of a host without links between devices that still reach each other under one switch of PCIe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What all fabrics share, fitted."""

    ring_share: float = 0.9
    """Share of what a plain copy reaches over a port inside a host that rings reach, whose kernels also reduce and wait."""
    own_copy: float = 0.35
    """Time to copy a byte of a rank's own part, as a share of the time of a byte over its port."""
    exchange_steps: float = 3.3
    """Steps that an all-to-all takes for its first bytes."""
    switch_steps: float = 14.0
    """Steps that reducing in the switch takes for the first bytes,"""
    switch_share: float = 0.71
    """the share of the bandwidth of a ring's ports that it reaches,"""
    switch_ramp: float = 3.5
    """and its ramp as a multiple of theirs."""
    staged_B_per_s: float = 10e9
    """What each device of a host gets where all passes the memory of the host,"""
    staged_power: float = 1.3
    """and the power of their number by which it falls beyond four."""


def constants(found: Mapping[str, Any] | None = None) -> Constants:
    """From a fitted table, by default the one in `costmodels/fitted`."""
    return _constants() if found is None else _read(found)


@lru_cache(maxsize=1)
def _constants() -> Constants:
    return _read(tables.load("collectives"))


def _read(found: Mapping[str, Any]) -> Constants:
    known = found["parameters"]
    return Constants(**{f.name: float(known[f.name]) for f in fields(Constants)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where the members of a communicator are: `size` ranks on `nodes` hosts, the rates of the slowest ports, step latencies.

    `node_B_per_s` and `net_B_per_s` are inf where the communicator uses no such port; `rails` counts the network ports that a
    host's members bring, `node_s` and `net_s` are the latencies of one step inside a host and between hosts. `in_switch`: the
    switch between the members of a host can reduce. `start_s` of the slowest link; `ramp_s` and `net_ramp_s` as in `LinkSpec`,
    of the links inside a host and of a step between hosts. Every field may be an array.
    """

    size: Number
    nodes: Number
    rails: Number
    node_B_per_s: Number
    net_B_per_s: Number
    node_s: Number
    net_s: Number
    in_switch: bool | Bools = False
    start_s: Number = 0.0
    ramp_s: Number = 0.0
    net_ramp_s: Number = 0.0

    @property
    def per_node(self) -> Number:
        """Most members on one host, if they are spread evenly."""
        return np.ceil(self.size / self.nodes)

    @property
    def net_hops(self) -> Number:
        """Levels of a binary tree between the hosts."""
        return np.ceil(np.log2(self.nodes))


def port_rate(link: LinkSpec, members: int, *, staged: bool, device: str = "") -> float:
    """Bytes per second that each of `members` ranks of a host gets when all of them send; `staged` if devices cannot reach each
    other's memory and everything beyond a pair passes that of the host, which was measured for some kinds of `device`."""
    shared = constants()
    rate = link.B_per_s * link.efficiency * shared.ring_share * reach(link, members)
    if not staged or link.kind != "pcie" or members <= DIRECT:
        return rate
    few_B_per_s = float(tables.load("collectives")["hosts"].get(device, shared.staged_B_per_s))
    return min(rate, float(staged_rate(few_B_per_s, members, shared.staged_power)))


def reach(link: LinkSpec, members: float) -> float:
    """Share of a port that `members` ranks of a host use: of a mesh only the wires between them."""
    return float(min(1.0, (members - 1) / MESHES[link.name])) if link.name in MESHES and members > 1 else 1.0


def staged_rate(few_B_per_s: Number, members: Number, power: float) -> Number:
    """Bytes per second that each of `members` ranks gets through the memory of their host, from what each of up to four gets."""
    return few_B_per_s * (4 / np.maximum(members, 4.0)) ** power


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Takes latency_s + volume_B / cap_B_per_s alone; a byte of volume is `node_weight` bytes over each member's port inside
    the host and `net_weight` over each network port. `own_B` are bytes that a rank copies for itself, `ramp_s` fills the
    pipeline."""

    algorithm: str
    latency_s: Number
    volume_B: Number
    cap_B_per_s: Number
    node_weight: Number
    net_weight: Number
    own_B: Number = 0.0
    ramp_s: Number = 0.0

    @property
    def seconds(self) -> Number:
        return self.latency_s + np.where(np.equal(self.volume_B, 0.0), 0.0, self.volume_B / self.cap_B_per_s)


NOTHING = Choice(algorithm="none", latency_s=0.0, volume_B=0.0, cap_B_per_s=inf, node_weight=0.0, net_weight=0.0)


@lru_cache(maxsize=65536)
def best(kind: str, nbytes: float, dtype: str, shape: Shape) -> Choice:
    """The fastest algorithm for a message of `nbytes` (as nccl-tests counts it), with all that measurements add to it."""
    if shape.size == 1:
        return NOTHING
    found = min(_candidates(kind, nbytes, dtype in SWITCH_DTYPES, shape, constants()), key=lambda c: float(c.seconds))
    numbers = {f.name: float(getattr(found, f.name)) for f in fields(Choice) if f.name != "algorithm"}
    return Choice(algorithm=found.algorithm, **numbers)


def seconds(
    kind: str, nbytes: Floats, reducible: Bools | bool, shape: Shape, shared: Constants
) -> tuple[Floats, Floats]:
    """(rows,) seconds of the fastest algorithm for each message, and the part of them that does not grow with its size.

    `reducible`: of a data type that switches can reduce.
    """
    choices = _candidates(kind, nbytes, reducible, shape, shared)
    times = np.stack([np.broadcast_to(c.seconds, nbytes.shape) for c in choices])
    waits = np.stack([np.broadcast_to(c.latency_s, nbytes.shape) for c in choices])
    fastest = times.argmin(axis=0)[None]
    return np.take_along_axis(times, fastest, 0)[0], np.take_along_axis(waits, fastest, 0)[0]


def _candidates(kind: str, nbytes: Number, reducible: Bools | bool, shape: Shape, shared: Constants) -> list[Choice]:
    """Realised algorithms; those that a row cannot use never end."""
    if kind == "all_to_all":
        return [realised(all_to_all(nbytes, shape, shared), shape, shared)]
    choices = [ring(kind, nbytes, shape)]
    away = np.greater(shape.nodes, 1)
    if kind in ("all_reduce", "barrier") and np.any(away):
        choices.append(_only(away, tree(kind, nbytes, shape)))
    switched = np.logical_and(shape.in_switch, np.greater_equal(shape.per_node, SWITCH_RANKS)) & reducible
    if kind == "all_reduce" and np.any(switched):
        choices.append(_only(switched & away, hierarchical(nbytes, shape, shared)))
        choices.append(_only(switched & ~away, in_switch(nbytes, shape, shared)))
    return [realised(c, shape, shared) for c in choices]


def _only(where: Bools, choice: Choice) -> Choice:
    return replace(choice, latency_s=np.where(where, choice.latency_s, inf))


def realised(choice: Choice, shape: Shape, shared: Constants) -> Choice:
    """The closed form with its start, the copy of a rank's own part and the filling of its pipeline; see the module.

    Bytes still on their way are volume: the rate falls, so that links are asked for what they really carry.
    """
    moving_s = (choice.volume_B + shared.own_copy * choice.own_B) / choice.cap_B_per_s
    return replace(
        choice,
        latency_s=choice.latency_s + shape.start_s,
        cap_B_per_s=filled_rate(moving_s, choice.volume_B, choice.ramp_s),
    )


def ring(kind: str, nbytes: Number, shape: Shape) -> Choice:
    """`STEPS` times (n - 1) steps, each moving 1/n of the buffer between neighbours; hosts are entered once for each rail.

    Alone in one host: all-reduce takes 2 (n - 1) (latency + nbytes / n / B).
    """
    n, passes = shape.size, STEPS[kind]
    parts = {"barrier": 0.0, "broadcast": 1.0}.get(kind, passes * (n - 1) / n)
    own = 0.0 if kind in ("barrier", "broadcast") else nbytes / n
    latency = passes * ((n - shape.nodes) * shape.node_s + (shape.nodes - 1) * shape.net_s)
    near = np.where(np.greater(n, shape.nodes), 1.0, 0.0)
    ramp = shape.ramp_s + (shape.nodes - 1) * shape.net_ramp_s
    return _on_ports("ring", latency, parts * nbytes, near, 1.0 / shape.rails, shape, ramp_s=ramp, own_B=own)


def tree(kind: str, nbytes: Number, shape: Shape) -> Choice:
    """A chain in each host and a double binary tree between hosts, up and down: every rank but the chain's ends and every host
    passes the buffer on twice. (Two hosts would only exchange halves, but NCCL does not count on it and keeps to rings.)"""
    near = np.where(np.greater(shape.size, shape.nodes), 1.0, 0.0)
    far = 1.0 / shape.rails
    volume = 0.0 if kind == "barrier" else 2 * nbytes
    latency = 2 * ((shape.per_node - 1) * shape.node_s + shape.net_hops * shape.net_s)
    ramp = shape.ramp_s + shape.net_hops * shape.net_ramp_s
    return _on_ports("tree", latency, volume, near, far, shape, ramp_s=ramp)


def in_switch(nbytes: Number, shape: Shape, shared: Constants) -> Choice:
    """Every rank sends the buffer to the switch of its host and receives the sum (NVLink SHARP)."""
    latency, near, ramp = shared.switch_steps * shape.node_s, 1 / shared.switch_share, shared.switch_ramp * shape.ramp_s
    return _on_ports("in_switch", latency, nbytes, near, 0.0, shape, ramp_s=ramp)


def hierarchical(nbytes: Number, shape: Shape, shared: Constants) -> Choice:
    """Reduced by the switch in each host and by a double binary tree between hosts (NCCL's NVLSTree)."""
    far = np.where(np.equal(shape.nodes, 2), 1.0, 2.0) / shape.rails
    latency = shared.switch_steps * shape.node_s + 2 * shape.net_hops * shape.net_s
    ramp = shared.switch_ramp * shape.ramp_s + shape.net_hops * shape.net_ramp_s
    return _on_ports("hierarchical", latency, nbytes, 1 / shared.switch_share, far, shape, ramp_s=ramp)


def all_to_all(nbytes: Number, shape: Shape, shared: Constants) -> Choice:
    """Every rank sends 1/n of its buffer to every other, all at once."""
    n = shape.size
    local = n / shape.nodes
    far = (n - local) / (n - 1)
    away = np.greater(shape.nodes, 1)
    step_s: Number = np.where(away, shape.net_s, shape.node_s)
    near = np.where(np.greater(local, 1), 1.0 - far, 0.0)
    ramp = shape.ramp_s + np.where(away, shape.net_ramp_s, 0.0)
    return _on_ports(
        "pairwise",
        shared.exchange_steps * step_s,
        (n - 1) / n * nbytes,
        near,
        far * local / shape.rails,
        shape,
        ramp_s=ramp,
        own_B=nbytes / n,
    )


def _on_ports(
    algorithm: str,
    latency_s: Number,
    volume_B: Number,
    near: Number,
    far: Number,
    shape: Shape,
    *,
    ramp_s: Number,
    own_B: Number = 0.0,
) -> Choice:
    """The rate that the slower kind of port allows; `near` and `far` are bytes over them for each byte of volume."""
    far = np.where(np.greater(shape.nodes, 1), far, 0.0)
    with np.errstate(divide="ignore"):
        cap = np.minimum(shape.node_B_per_s / np.asarray(near), shape.net_B_per_s / far)
    return Choice(
        algorithm=algorithm,
        latency_s=latency_s,
        volume_B=volume_B,
        cap_B_per_s=cap,
        node_weight=near,
        net_weight=far,
        own_B=own_B,
        ramp_s=ramp_s,
    )
