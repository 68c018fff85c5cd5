"""What the player works on: nodes, links and classes of ranks as tables of numbers.

A node is one task's part on one class of ranks (computing) or in one class of communicators (moving bytes). Times are seconds,
volumes bytes; -1 means none. Tables are record arrays: the compiled functions read `s.nodes[i].left`.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Records = Any  # numpy.recarray; its fields are not typed

# kinds of node
COMPUTE, FLOW, JOIN, ASK, ANSWERED = 0, 1, 2, 3, 4
# phases of a node
WAITING, LATENCY, RUNNING, DONE, BLOCKED = 0, 1, 2, 3, 4
# slots of `State.counts`
HEAPED, ORDER, FINISHED, N_DIRTY, N_TOUCHED, ASKED, FIFO = 0, 1, 2, 3, 4, 5, 6
N_COUNTS = 7

NODE = np.dtype(
    [
        ("kind", "i8"),
        ("work", "f8"),  # seconds of computing at full speed, or bytes of a flow
        ("latency", "f8"),  # seconds before the first byte of a flow
        ("cap", "f8"),  # rate of a flow that is alone, bytes per second
        ("member_from", "i8"),  # classes that take part: members[member_from:member_to]
        ("member_to", "i8"),
        ("edge_from", "i8"),  # links that a flow shares with others: edges[edge_from:edge_to]
        ("edge_to", "i8"),
        ("quiet", "i8"),  # a flow of the host alone: devices compute no slower meanwhile
        ("succ_from", "i8"),  # nodes that wait for this one: succ[succ_from:succ_to]
        ("succ_to", "i8"),
        ("pending", "i8"),  # predecessors not done
        ("phase", "i8"),
        ("left", "f8"),  # work not done at time `since`
        ("rate", "f8"),
        ("since", "f8"),
        ("start", "f8"),
        ("end", "f8"),
        ("low", "f8"),  # lowest level among the links of a flow, or its cap
        ("low_edge", "i8"),  # the edge with that level, -1 for the cap
        ("second", "f8"),  # lowest level without `low_edge`
        ("due", "f8"),
        ("order", "i8"),  # ties are broken by the order of scheduling
        ("slot", "i8"),  # position in the heap
        ("busy_next", "i8"),  # what computes on a class, as a list
        ("busy_prev", "i8"),
        ("is_touched", "i8"),  # the rate has to be computed again
    ]
)
EDGE = np.dtype(
    [
        ("link", "i8"),
        ("weight", "f8"),  # bytes over the link for each byte of the flow
        ("node", "i8"),
        ("next", "i8"),  # flows on a link, as a list
        ("prev", "i8"),
    ]
)
CLASS = np.dtype(
    [
        ("slowdown", "f8"),  # share of computing speed lost while bytes move
        ("speed", "f8"),  # 1 unless a fault slows the device
        ("dead", "i8"),
        ("moving", "i8"),  # flows in progress
        ("busy", "i8"),  # computing in progress
        ("busy_head", "i8"),
    ]
)
LINK = np.dtype(
    [
        ("capacity", "f8"),
        ("level", "f8"),  # max-min water level: no flow over this link runs faster
        ("head", "i8"),
        ("tail", "i8"),
        ("is_dirty", "i8"),  # the level has to be computed again
    ]
)
DIRTY = np.dtype([("link", "i8"), ("key", "f8")])
SCRATCH = np.dtype([("rate", "f8"), ("weight", "f8")])


class Queue(Protocol):
    """What the heap works on: `nodes` with `due`, `order` and `slot`, and room for all of them in `heap`."""

    @property
    def nodes(self) -> Records: ...
    @property
    def heap(self) -> Ints: ...
    @property
    def counts(self) -> Ints: ...


class Levels(Protocol):
    """What the heap of dirty links works on."""

    @property
    def links(self) -> Records: ...
    @property
    def dirty(self) -> Records: ...
    @property
    def counts(self) -> Ints: ...


class State(NamedTuple):
    """One run of the player; see `new_state`."""

    nodes: Records
    edges: Records
    classes: Records
    links: Records
    members: Ints
    succ: Ints
    heap: Ints  # nodes by due time
    dirty: Records  # heap of links by level
    touched: Ints
    scratch: Records
    counts: Ints
    clock: Floats  # (1,)


def table(dtype: np.dtype[Any], size: int, **columns: object) -> Records:
    """A record array with the given columns; every other number is 0, or -1 where it points at something."""
    out = np.zeros(size, dtype=dtype).view(np.recarray)
    for name in ("low_edge", "slot", "busy_next", "busy_prev", "busy_head", "head", "tail", "next", "prev"):
        if name in (dtype.names or ()):
            out[name] = -1
    for name, values in columns.items():
        out[name] = values
    return out


def new_state(
    *,
    kind: Ints,
    work: Floats,
    latency: Floats,
    cap: Floats,
    quiet: Ints,
    members: tuple[Ints, Ints],
    edges: tuple[Ints, Ints, Floats],
    successors: tuple[Ints, Ints],
    slowdown: Floats,
    capacity: Floats,
    fifo: bool,
) -> State:
    """A run that has not begun. Pairs and triples are (pointers, values, ...) as in compressed sparse rows."""
    n = len(kind)
    pending = np.bincount(successors[1], minlength=n).astype(np.int64) + (kind == ANSWERED)
    rows = {
        f"{name}_{end}": ptr[shift : shift + n]
        for name, ptr in (("member", members[0]), ("edge", edges[0]), ("succ", successors[0]))
        for end, shift in (("from", 0), ("to", 1))
    }
    nan, infinite = np.nan, np.inf
    count = np.zeros(N_COUNTS, dtype=np.int64)
    count[FIFO] = int(fifo)
    return State(
        nodes=table(
            NODE, n, kind=kind, work=work, latency=latency, cap=cap, quiet=quiet, pending=pending, left=work, low=cap,
            second=infinite, start=nan, end=nan, due=infinite, **rows,
        ),
        edges=table(
            EDGE, len(edges[1]), link=edges[1], weight=edges[2], node=np.repeat(np.arange(n), np.diff(edges[0]))
        ),
        classes=table(CLASS, len(slowdown), slowdown=slowdown, speed=1.0),
        links=table(LINK, len(capacity), capacity=capacity, level=infinite),
        members=members[1],
        succ=successors[1],
        heap=np.full(n, -1, dtype=np.int64),
        dirty=table(DIRTY, len(capacity) + 1),
        touched=np.zeros(n, dtype=np.int64),
        scratch=table(SCRATCH, n + 1),
        counts=count,
        clock=np.zeros(1),
    )  # fmt: skip
