"""From a graph, a device and its costs to the tables of a `LocalGraph`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Protocol

import numpy as np

from costmodels import precision_kernels as kernels
from costmodels import precision_memory as memory
from costmodels.kernels import WIDTH_B, Kernel, kernel
from costmodels.operator_graph import Operator, OperatorGraph
from costmodels.precision import ADJUSTABLE, FIXED, PRECISIONS, Cast, allowed, casts_of, flow_of, of_device, widened
from costmodels.specs import DeviceSpec, Estimate
from simcore.buckets import assign
from simcore.plan import Compute
from simcore.qsync.local import BACKWARD, FLOAT32, FORWARD, INDEX, Floats, Ints, LocalGraph
from simcore.qsync.peak import excess_B
from simcore.qsync.settings import setting


class Prices(Protocol):
    """What tables ask of a cost model."""

    def compute(self, op: Compute, device: DeviceSpec) -> Estimate: ...


WAYS = {"forward": FORWARD, "backward": BACKWARD}
P = len(PRECISIONS)


def local_graph(
    graph: OperatorGraph,
    device: DeviceSpec,
    batch: int,
    cost: Prices,
    *,
    optimizer: str = "sgd_momentum",
    buckets: Sequence[Sequence[str]],
    casts: kernels.Casts = "fitted",
) -> LocalGraph:
    """Tables of `batch` samples on one device; `buckets` are names of parameters, `optimizer` a kernel of `costmodels.kernels`."""
    made = _Tables(graph, device, batch, cost, casts)
    for i, operator in enumerate(graph):
        made.operator(i, operator)
    step = kernel(optimizer, "float32", params=graph.elements)
    states = memory.states(graph, optimizer)
    found = LocalGraph(
        graph=graph,
        device=device,
        batch=batch,
        casts=casts,
        infers=np.array([o.kind not in ADJUSTABLE and o.kind not in FIXED for o in graph]),
        optimizer_s=made.price(step),
        bucket_names=tuple(tuple(names) for names in buckets),
        bucket_B=np.array([4.0 * sum(prod(graph.parameters[n]) for n in names) for names in buckets]),
        bucket_step=_closing_steps(graph, buckets),
        resident_B=states | ({"overhead": memory.OVERHEAD_B} if device.kind == "gpu" else {}),
        tensor_B=np.array([[o.output.elements(batch) * WIDTH_B[p] for p in PRECISIONS] for o in graph]),
        root=_roots(graph, made.out_of_order),
        kept=np.array([memory.keeps_result(o) for o in graph]),
        keeps=np.array([memory.keeps_operands(graph.operators[i]) for i in made.consumer], dtype=np.bool_),
        producer=made.producer,
        consumer=made.consumer,
        allowed=made.allowed,
        output_of=made.output_of,
        own_s=made.own_s,
        edge_s=made.edge_s,
        own_host_s=made.own_host_s,
        edge_host_s=made.edge_host_s,
        own_B=made.own_B,
        edge_B=made.edge_B,
        working_B=made.working_B,
        allowance_B=0.0,
    )
    return replace(found, allowance_B=_allowance_B(found))


def _allowance_B(local: LocalGraph) -> float:
    """The most that any uniform precision takes beyond what it keeps."""
    found = []
    for p in np.flatnonzero(local.allowed.any(axis=0)).tolist():
        wide_enough = {i: np.flatnonzero(local.allowed[i, p:]) for i in local.adjustable.tolist()}
        chosen = {local.graph.operators[i].name: PRECISIONS[p + int(at[0])] for i, at in wide_enough.items() if len(at)}
        found.append(excess_B(local, setting(local, chosen)))
    return max(found, default=0.0)


def bucket_names(graph: OperatorGraph, first_B: float, cap_B: float) -> list[list[str]]:
    """Gradients that are reduced together, as DistributedDataParallel groups them."""
    return assign([(name, 4 * prod(size)) for name, size in graph.parameters.items()], first_B, cap_B)


def _closing_steps(graph: OperatorGraph, buckets: Iterable[Sequence[str]]) -> Ints:
    """(buckets,) the first operator that reads one of a bucket's parameters: the last that gives a gradient. Buckets are reduced in
    order, so that one waits for those before it."""
    first: dict[str, int] = {}
    for i, operator in enumerate(graph):
        for name in operator.parameters:
            first.setdefault(name, i)
    closing = [min((first.get(n, len(first)) for n in names), default=0) for names in buckets]
    return np.minimum.accumulate(np.array(closing, dtype=np.int64)) if closing else np.empty(0, dtype=np.int64)


def _roots(graph: OperatorGraph, out_of_order: frozenset[str]) -> Ints:
    """(n,) the operator whose memory holds each result."""
    root = np.arange(len(graph.operators))
    for i, operator in enumerate(graph):
        if operator.inputs and kernels.is_view(operator, out_of_order):
            root[i] = root[graph.index[operator.inputs[0]]]
    return root


@dataclass
class _Tables:
    """Tables while they are filled, an operator at a time."""

    graph: OperatorGraph
    device: DeviceSpec
    batch: int
    cost: Prices
    casts: kernels.Casts
    known: dict[Kernel, float] = field(default_factory=dict)
    counted: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        graph, n = self.graph, len(self.graph.operators)
        self.has = of_device(self.device)
        self.out_of_order = kernels.reordered(graph)
        edges = [(graph.index[name], i) for i, o in enumerate(graph) for name in o.inputs]
        self.producer, self.consumer = np.array(edges, dtype=np.int64).reshape(-1, 2).T
        self.first_edge = np.searchsorted(self.consumer, np.arange(n))
        self.allowed = np.zeros((n, P), dtype=np.bool_)
        self.output_of = np.full((n, P), -1, dtype=np.int64)
        self.own_s, self.own_host_s = np.full((2, n, 2, P), np.nan)
        self.edge_s, self.edge_host_s = np.full((2, len(edges), 2, P, P), np.nan)
        self.own_B, self.edge_B = np.full((n, P), np.nan), np.full((len(edges), P, P), np.nan)
        self.working_B = np.full((n, P), np.nan)
        self.host_s = self.price(kernels.launch(1000)) / 1000 if self.device.kind == "gpu" else 0.0

    def price(self, one: Kernel) -> float:
        """Seconds of a kernel on the device."""
        if one not in self.known:
            self.known[one] = self.cost.compute(Compute(group="", kernels=(one,)), self.device).seconds
        return self.known[one]

    def operator(self, i: int, operator: Operator) -> None:
        """Rows of one operator, and of its edges; its producers come before it."""
        chosen = allowed(operator, self.has)
        self.allowed[i, [INDEX[p] for p in chosen]] = True
        edges = range(int(self.first_edge[i]), int(self.first_edge[i]) + len(operator.inputs))
        arriving = sorted({int(o) for e in edges for o in self.output_of[self.producer[e]] if o >= 0}) or [FLOAT32]
        fixed = operator.kind in FIXED or operator.kind in ADJUSTABLE
        possible = [INDEX[p] for p in chosen] if chosen else [FLOAT32] if fixed else sorted({*arriving, FLOAT32})
        for c in possible:
            self._own(i, operator, c)
            for source in arriving:
                self._casts(operator, i, edges, source, c)

    def _own(self, i: int, operator: Operator, c: int) -> None:
        graph, batch, flow = self.graph, self.batch, flow_of(operator, PRECISIONS[c], self.has)
        self.output_of[i, c] = INDEX[flow.output]
        self.own_B[i, c] = memory.own_B(graph, operator, batch, PRECISIONS[c])
        widens, cpu = flow.backward in widened(self.device), self.device.kind == "cpu"
        self.working_B[i, c] = memory.working_B(graph, operator, batch, flow, cpu=cpu, widens=widens)
        runs = {
            "forward": kernels.forward(graph, operator, batch, flow.computes, self.out_of_order),
            "backward": kernels.backward(graph, operator, batch, flow.backward, flow.output, self.out_of_order),
        }
        for way, run in runs.items():
            self.own_s[i, WAYS[way], c] = sum(self.price(k) for k in run)
            work = kernels.launches(operator, way, len(run), self.out_of_order)
            self.own_host_s[i, WAYS[way], c] = work * self.host_s

    def _casts(self, operator: Operator, i: int, edges: range, source: int, c: int) -> None:
        """Casts of operands go to their edges; the others are the same whatever arrives, and counted once."""
        flow = flow_of(operator, PRECISIONS[c], self.has)
        of_place = dict(zip(operator.sources, edges, strict=True))
        for place, e in of_place.items():
            self.edge_s[e, :, source, c] = self.edge_host_s[e, :, source, c] = 0.0
            size = operator.operands[place].elements(self.batch) * WIDTH_B[PRECISIONS[c]]
            same = kernels.stored(PRECISIONS[source]) == kernels.stored(PRECISIONS[c])
            self.edge_B[e, source, c] = 0.0 if same or not memory.keeps_operands(operator) else size
        first = (i, c) not in self.counted
        self.counted.add((i, c))
        for change in casts_of(self.graph, operator, flow, [PRECISIONS[source]] * len(edges), self.batch):
            place = _place(change)
            if place in of_place:
                e = of_place[place]
                self._add(self.edge_s[e, :, source, c], self.edge_host_s[e, :, source, c], change)
            elif first:
                self._add(self.own_s[i, :, c], self.own_host_s[i, :, c], change)

    def _add(self, seconds: Floats, host_s: Floats, change: Cast) -> None:
        way = WAYS[change.way]
        seconds[way] += sum(self.price(k) for k in kernels.cast(change, self.casts))
        host_s[way] += kernels.cast_launches(change) * self.host_s


def _place(change: Cast) -> int:
    """The operand that a cast is of, -1 for a weight's and the result's."""
    what, *rest = change.what.removeprefix("saved ").split()
    return int(rest[0]) if what == "operand" else -1
