"""Where the ops of a plan take place: communicators, what they demand, the links they contend for, and classes of all of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from costmodels.specs import DeviceSpec, Estimate
from simcore.cluster import Cluster
from simcore.demand import Demand
from simcore.engine.grouping import Communicators, Partition, mix, partition, singletons
from simcore.plan import Collective, Compute, Op, Plan, Read, Transfer, Write

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Use = tuple[Ints, Ints, Floats]
"""Rows (instance, link, weight)."""


class Costs(Protocol):
    """What the engine asks of a cost model; `simcore.cost.CostModel` is the one that scenarios use."""

    def compute(self, op: Compute, device: DeviceSpec) -> Estimate: ...

    def demands(self, op: Op, instances: Ints) -> list[Demand]: ...

    def signature(self, instances: Ints) -> Ints: ...

    def link_use(self, op: Op, instances: Ints) -> tuple[Ints, Ints, Floats]:
        """Links of every instance, in rows (instance, link, bytes over the link per byte of the demand's volume)."""


@dataclass(slots=True)
class Site:
    """Ops of one placement: the instances they run in, (k, members) ranks."""

    members: Ints
    communicates: bool
    skewed: bool
    roles: Ints
    ops: list[int] = field(default_factory=list)
    signature: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))


class Sites:
    """The placements of a plan's ops, each once."""

    def __init__(self, plan: Plan, ops: Sequence[Op], cost: Costs, *, skew: bool, shared_cores: bool = False) -> None:
        self.sites: list[Site] = []
        self.of_op = np.empty(len(ops), dtype=np.int64)
        known: dict[object, int] = {}
        flat = {name: group.ranks().reshape(-1) for name, group in plan.groups.items()}
        for i, op in enumerate(ops):
            key = _site_key(op, skew)
            if key not in known:
                known[key] = len(self.sites)
                self.sites.append(_site(plan, op, flat, skew, shared_cores))
            self.of_op[i] = known[key]
            self.sites[known[key]].ops.append(i)
        for site in self.sites:
            if site.communicates and len(site.members) > 1:
                site.signature = cost.signature(site.members)
            elif site.communicates:
                site.signature = np.zeros(1, dtype=np.int64)


def _site_key(op: Op, skew: bool) -> object:
    if isinstance(op, Transfer):
        return ("transfer", op.source, op.target)
    if isinstance(op, Collective):
        return ("collective", op.group, op.along, skew and op.kind == "all_reduce")
    if isinstance(op, (Read, Write)):
        return ("store", op.group)
    return ("compute", op.group)


def _site(plan: Plan, op: Op, flat: Mapping[str, Ints], skew: bool, shared_cores: bool) -> Site:
    if isinstance(op, Transfer):
        members = np.stack([flat[op.source], flat[op.target]], axis=1)
        return Site(members, True, False, np.array([1, 2]))
    if isinstance(op, Collective):
        members = plan.groups[op.group].instances(op.along)
        return Site(members, True, skew and op.kind == "all_reduce", np.zeros(members.shape[1], dtype=np.int64))
    members = flat[op.group][:, None]
    return Site(members, shared_cores or not isinstance(op, Compute), False, np.zeros(1, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Disturbed:
    """What faults touch, as colours that tell apart what they touch differently. `lowest` (links,) is the least capacity."""

    ranks: NDArray[np.uint64]
    links: NDArray[np.uint64]
    lowest: Floats


ALONE = np.zeros(1, dtype=np.int64)


class Demands:
    """Demands of each op in each instance, computed once for instances that are placed alike."""

    def __init__(self, ops: Sequence[Op], sites: Sites, cost: Costs) -> None:
        self.by_kind: list[list[Demand]] = []
        self.kind: list[Ints] = []
        alike = {}
        for i, op in enumerate(ops):
            number = int(sites.of_op[i])
            site = sites.sites[number]
            if not site.communicates:
                self.by_kind.append([])
                self.kind.append(np.empty(0, dtype=np.int64))
                continue
            if len(site.members) == 1:
                alike[number] = (ALONE, ALONE)
            elif number not in alike:
                _, first, inverse = np.unique(site.signature, return_index=True, return_inverse=True)
                alike[number] = (first, inverse.reshape(-1).astype(np.int64))
            first, inverse = alike[number]
            self.by_kind.append(cost.demands(op, site.members[first]))
            self.kind.append(inverse)

    def of(self, op: int, instance: int) -> Demand:
        return self.by_kind[op][int(self.kind[op][instance])]

    def caps(self, op: int) -> Floats:
        """(k,) rate of each instance alone."""
        return np.array([d.cap_B_per_s for d in self.by_kind[op]])[self.kind[op]]


def contended_uses(ops: Sequence[Op], sites: Sites, demands: Demands, cost: Costs, lowest: Floats) -> list[Use | None]:
    """For each op the rows (instance, link, weight) over links that could be asked for more than they carry.

    A link is left out if all that could cross it at one time does not fill it: one op for each placement and stream.
    """
    uses: list[Use | None] = []
    asked: dict[tuple[int, str], list[tuple[Ints, Floats]]] = {}
    for i, op in enumerate(ops):
        site = sites.sites[sites.of_op[i]]
        if not site.communicates or site.skewed:
            uses.append(None)
            continue
        instance, link, weight = cost.link_use(op, site.members)
        uses.append((instance, link, weight))
        rate = np.minimum(demands.caps(i), 1e30)[instance] * weight
        asked.setdefault((int(sites.of_op[i]), op.stream), []).append((link, rate))
    total = np.zeros(len(lowest))
    for loads in asked.values():
        if len(loads) == 1:
            np.add.at(total, *loads[0])
        else:
            total += reduce(np.maximum, (np.bincount(link, rate, minlength=len(lowest)) for link, rate in loads))
    contended = total > lowest * (1 + 1e-9)
    return [None if use is None else _only(use, contended[use[1]]) for use in uses]


def _only(use: Use, kept: NDArray[np.bool_]) -> Use:
    instance, link, weight = use
    return instance[kept], link[kept], weight[kept]


def split(
    plan: Plan, cluster: Cluster, sites: Sites, uses: Sequence[Use | None], disturbed: Disturbed, alone: bool
) -> Partition:
    """Classes of ranks, instances and links; `alone` puts every rank by itself."""
    n = plan.n_ranks
    sizes = [len(site.members) for site in sites.sites if site.communicates]
    if alone:
        return singletons(n, len(disturbed.links), sizes)
    with np.errstate(over="ignore"):
        colour = mix(cluster.device_index[:n]) + mix(disturbed.ranks[:n])
        for i, group in enumerate(plan.groups.values()):
            colour[group.ranks().reshape(-1)] += mix(i + 1)
        if len(np.unique(colour)) == n:
            return singletons(n, len(disturbed.links), sizes)
        links = mix(cluster.capacity.view(np.int64)) + mix(disturbed.links)
    communicators = []
    for site in sites.sites:
        if site.communicates:
            c = Communicators(site.members, site.roles, site.signature)
            c.uses = [use for i in site.ops if (use := uses[i]) is not None]
            communicators.append(c)
    return partition(mix(colour), links, communicators)
