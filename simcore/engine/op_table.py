"""What each op of a plan becomes on the classes of a cluster: nodes with their cost, and where classes enter and leave them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from costmodels.specs import DeviceSpec, Estimate
from simcore.cluster import Cluster
from simcore.demand import Demand
from simcore.engine.grouping import Partition, first_members
from simcore.engine.placement import Costs, Demands, Ints, Site, Sites, Use
from simcore.engine.state import ANSWERED, ASK, COMPUTE, FLOW, JOIN
from simcore.plan import HOST, Compute, Op, Read, Write


@dataclass(frozen=True, slots=True)
class Placed:
    """A site on classes: its nodes, and rows (class, node) where a class enters and leaves. Nodes count from 0 at each task."""

    n_nodes: int
    ins: Ints
    outs: Ints
    inner: Ints


@dataclass(slots=True, kw_only=True)
class Row:
    """One node of an op."""

    kind: int
    work: float = 0.0
    latency: float = 0.0
    cap: float = np.inf
    nbytes: int = 0
    classes: Sequence[int] = ()
    links: Mapping[int, float] = field(default_factory=dict)
    estimate: Estimate | None = None
    ring: int = 0  # members of an all-reduce that asks for its ring steps
    quiet: bool = False  # moves bytes of the host, which leaves the device's computing alone


@dataclass(slots=True)
class OpTable:
    """Every distinct op with its nodes as `rows`; `first_row[op] + j` is node j of the op."""

    ops: Sequence[Op]
    placed: list[Placed]
    placed_of_op: Ints
    stream_of_op: Ints
    first_row: Ints
    rows: list[Row]

    @property
    def n_nodes(self) -> Ints:
        """(placements,) nodes of a task placed there."""
        return np.array([p.n_nodes for p in self.placed], dtype=np.int64)


def op_table(
    ops: Sequence[Op],
    sites: Sites,
    demands: Demands,
    uses: Sequence[Use | None],
    classes: Partition,
    cluster: Cluster,
    cost: Costs,
) -> OpTable:
    """Nodes of every op on the classes of `classes`."""
    placed, instance_classes, position = [], [], 0
    for site in sites.sites:
        found = np.empty(0, dtype=np.int64)
        if site.communicates:
            found = classes.instances[position]
            position += 1
        placed.append(_place(site, found, classes.ranks))
        instance_classes.append(found)
    streams = {name: i for i, name in enumerate(dict.fromkeys(op.stream for op in ops))}
    is_first = _first_of(classes.links)
    devices = _devices(classes, cluster)
    rows: list[Row] = []
    first_row = np.empty(len(ops), dtype=np.int64)
    for i, op in enumerate(ops):
        first_row[i] = len(rows)
        site, of_instance = sites.sites[sites.of_op[i]], instance_classes[sites.of_op[i]]
        if isinstance(op, Compute) and not site.communicates:
            rows += [_compute_row(op, c, devices[c], cost) for c in placed[sites.of_op[i]].ins[:, 0].tolist()]
            continue
        links = _links_by_class(uses[i], of_instance, is_first, classes.links)
        for j, instance in enumerate(first_members(of_instance)):
            rows += _flow_rows(
                op, site, demands.of(i, instance), classes.ranks[site.members[instance]], links.get(j, {})
            )
    return OpTable(
        ops=ops,
        placed=placed,
        placed_of_op=sites.of_op,
        stream_of_op=np.array([streams[op.stream] for op in ops], dtype=np.int64),
        first_row=first_row,
        rows=rows,
    )


def _devices(classes: Partition, cluster: Cluster) -> list[DeviceSpec]:
    return [cluster.device(rank) for rank in first_members(classes.ranks)]


def _first_of(numbers: Ints) -> NDArray[np.bool_]:
    first = np.zeros(len(numbers), dtype=bool)
    first[first_members(numbers)] = True
    return first


def _place(site: Site, of_instance: Ints, of_rank: Ints) -> Placed:
    empty = np.empty((0, 2), dtype=np.int64)
    if not site.communicates:
        classes = np.unique(of_rank[site.members[:, 0]])
        rows = np.stack([classes, np.arange(len(classes))], axis=1)
        return Placed(len(classes), rows, rows, empty)
    representatives = first_members(of_instance)
    members = of_rank[site.members[representatives]]
    if site.skewed:
        return _place_skewed(members)
    if len(members) == 1:
        only = np.unique(members[0])
        rows = np.stack([only, np.zeros_like(only)], axis=1)
        return Placed(1, rows, rows, empty)
    number = np.repeat(np.arange(len(representatives)), members.shape[1])
    rows = np.unique(np.stack([members.ravel(), number], axis=1), axis=0)
    return Placed(len(representatives), rows, rows, empty)


def _place_skewed(members: Ints) -> Placed:
    """A node that asks, then one for each member's arrival, then one for each member's end; every rank is its own class."""
    k, m = members.shape
    base = (np.arange(k) * (2 * m + 1))[:, None]
    arrive, depart = base + 1 + np.arange(m), base + 1 + m + np.arange(m)
    inner = np.stack([arrive.ravel(), np.broadcast_to(base, (k, m)).ravel()], axis=1)
    ins, outs = (np.stack([members.ravel(), x.ravel()], axis=1) for x in (arrive, depart))
    return Placed(k * (2 * m + 1), ins, outs, inner)


def _compute_row(op: Compute, c: int, device: DeviceSpec, cost: Costs) -> Row:
    estimate = cost.compute(op, device)
    if op.stream == HOST:
        return Row(kind=JOIN, latency=estimate.seconds, classes=(c,), estimate=estimate)
    return Row(kind=COMPUTE, work=estimate.seconds, classes=(c,), estimate=estimate)


def _flow_rows(op: Op, site: Site, demand: Demand, classes: Ints, links: Mapping[int, float]) -> list[Row]:
    repeat = getattr(op, "repeat", 1)
    row = Row(
        kind=ASK if site.skewed else FLOW,
        work=repeat * demand.volume_B,
        latency=repeat * demand.latency_s,
        cap=demand.cap_B_per_s,
        nbytes=repeat * demand.nbytes,
        classes=tuple(dict.fromkeys(classes.tolist())),
        links=links,
        estimate=demand.estimate,
        quiet=isinstance(op, (Compute, Read, Write)),
    )
    if not site.skewed:
        return [row]
    row.ring = len(classes)
    arrivals = [Row(kind=JOIN, classes=(c,)) for c in classes.tolist()]
    return [row, *arrivals, *(Row(kind=ANSWERED, nbytes=row.nbytes, classes=(c,)) for c in classes.tolist())]


def _links_by_class(
    use: Use | None, of_instance: Ints, is_first: NDArray[np.bool_], of_link: Ints
) -> dict[int, dict[int, float]]:
    """For each class of instances the classes of links it crosses, with the weight that the whole class puts on one of them."""
    out: dict[int, dict[int, float]] = {}
    if use is None:
        return out
    instance, link, weight = use
    seen = is_first[link]
    columns = (of_instance[instance[seen]], of_link[link[seen]], weight[seen])
    for j, number, w in zip(*(c.tolist() for c in columns), strict=True):
        row = out.setdefault(j, {})
        row[number] = row.get(number, 0.0) + w
    return out
