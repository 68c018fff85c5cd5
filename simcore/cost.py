"""From an op on certain ranks of a cluster to what it costs: seconds for computing, a demand on links for moving bytes."""

from collections.abc import Sequence
from dataclasses import replace
from math import nan

import numpy as np
from numpy.typing import NDArray

from costmodels import compute, measured
from costmodels.collectives import Shape, best, port_rate
from costmodels.kernels import Kernel
from costmodels.libraries import Libraries
from costmodels.point_to_point import send_rate
from costmodels.specs import DeviceSpec, Estimate, LinkSpec
from costmodels.storage import demand as store_demand
from simcore.cluster import Cluster
from simcore.demand import Demand, as_measured, closed_form, over_links, together
from simcore.engine.grouping import mix
from simcore.plan import Collective, Compute, Op, Read, Transfer, Write
from simcore.training import sustained
from simcore.training.overheads import Overheads

STORE_ERROR = 0.3  # relative error to expect; stores have too few measurements to say better

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class CostModel:
    """Costs on one cluster. `overheads` are factors on kernels, by default those of published training jobs; `libraries` are
    those whose kernels run."""

    def __init__(
        self, cluster: Cluster, overheads: Overheads | None = None, libraries: Libraries = compute.UNNAMED
    ) -> None:
        self.cluster = cluster
        self.overheads = overheads
        self.libraries = libraries
        self._routes: dict[tuple[int, int], Ints] = {}
        self._computed: dict[tuple[object, bool, str], Estimate] = {}
        self._shapes: dict[bytes, tuple[Shape, LinkSpec | None]] = {}

    def compute(self, op: Compute, device: DeviceSpec) -> Estimate:
        """All kernels of the op, one after the other; as uncertain as the worst of them."""
        key = (op.kernels, op.awaited, device.name)
        if key not in self._computed:
            found = together([self.kernel(k, device) for k in op.kernels])
            share = 1.0 if op.awaited else measured.unawaited(device)
            self._computed[key] = replace(found, seconds=found.seconds * share)
        return self._computed[key]

    def kernel(self, kernel: Kernel, device: DeviceSpec) -> Estimate:
        """All launches of one kernel."""
        return sustained.estimate(kernel, device, self.overheads or sustained.usual(), self.libraries)

    def errors(self, op: Compute, device: DeviceSpec) -> dict[str, float]:
        """What share of the op's time the errors of each fitted table are, or of what was measured on the device itself.

        NaN where nothing is known of them: of a device that no fitted table is about, or that was measured at too few sizes.
        """
        found: dict[str, float] = {}
        each = [(sustained.kind_of(k), self.kernel(k, device)) for k in op.kernels]
        total = sum(e.seconds for _, e in each)
        for kind, e in each if total else ():
            known = e.error is not None and (e.method == "measured" or device.kind == "gpu")
            table = "calibration" if e.method == "measured" else sustained.TABLES[kind]
            found[table] = (
                found.get(table, 0.0) + (e.error if known and e.error is not None else nan) * e.seconds / total
            )
        return found

    def seconds_each(self, kernels: Sequence[Kernel], device: DeviceSpec) -> Floats:
        """(kernels,) seconds of each on a device, as `compute` and faster for many."""
        return sustained.seconds_each(kernels, device, self.overheads or sustained.usual(), self.libraries)

    def signature(self, instances: Ints) -> Ints:
        """(k,) equal numbers for instances (k, members) that cost the same: their members have, in order, the same devices, share
        hosts with the same other members, and are as far from the next one."""
        following = np.roll(instances, -1, axis=1)
        distance = self.cluster.fabric.distance(instances.ravel(), following.ravel()).reshape(instances.shape)
        code = mix(self.cluster.device_index[instances]) ^ mix(distance)
        if instances.shape[1] > 2:
            code ^= mix(mix(_first_on_host(self.cluster.fabric.node_of(instances))))
        position = np.arange(instances.shape[1], dtype=np.uint64)
        with np.errstate(over="ignore"):
            return np.asarray(mix(code + mix(position)).sum(axis=1, dtype=np.uint64).view(np.int64), dtype=np.int64)

    def demands(self, op: Op, instances: Ints) -> list[Demand]:
        """One for each row of `instances`: (k, members) of a collective, (k, 2) source and target, (k, 1) of anything else."""
        if isinstance(op, Compute):
            return [self._core(op, int(row[0])) for row in instances]
        if isinstance(op, Collective):
            return [self._collective(op, row) for row in instances]
        if isinstance(op, Transfer):
            return [self._transfer(op, row) for row in instances]
        assert isinstance(op, (Read, Write))
        return [self._storage(op, int(row[0])) for row in instances]

    def _core(self, op: Compute, rank: int) -> Demand:
        """Computing where ranks share cores: as many seconds of one core."""
        device = self.cluster.device(rank)
        alone = self.compute(op, device)
        found = replace(alone, seconds=alone.seconds * measured.sharing(device))
        return Demand(latency_s=0.0, volume_B=found.seconds, cap_B_per_s=1.0, nbytes=0, estimate=found)

    def _collective(self, op: Collective, members: Ints) -> Demand:
        key = members.tobytes()
        if key not in self._shapes:
            self._shapes[key] = self._shape(members)
        shape, link = self._shapes[key]
        choice = best(op.kind, float(op.nbytes), op.dtype, shape)
        if link is not None and link.measured:
            known = measured.link_seconds(link, op.kind, shape.size, op.nbytes)
            if known is not None:
                return as_measured(choice, known, op.nbytes, link)
        source = f"{choice.algorithm}, {link.name if link is not None else 'no link'}"
        return Demand(
            latency_s=choice.latency_s,
            volume_B=choice.volume_B,
            cap_B_per_s=choice.cap_B_per_s,
            nbytes=op.nbytes,
            estimate=over_links(op.kind, choice.seconds, choice.latency_s, link, source, away=shape.nodes > 1),
            node_weight=choice.node_weight,
            net_weight=choice.net_weight,
        )

    def _shape(self, members: Ints) -> tuple[Shape, LinkSpec | None]:
        """Where the members are, and the slowest link that they need."""
        fabric, kinds = self.cluster.fabric, np.unique(self.cluster.device_index[members])
        node = fabric.node_of(members)
        counts = np.unique(node, return_counts=True)[1]
        near = [link for k in kinds if (link := self.cluster.intra[k]) is not None] if counts.max() > 1 else []
        far = [link for k in kinds if (link := self.cluster.inter[k]) is not None] if len(counts) > 1 else []
        rate, step_s = fabric.ring(members) if far else (np.inf, 0.0)
        apart = next((d.name for k in kinds if (d := self.cluster.devices[k]).peer_link is None), None)
        shape = Shape(
            size=len(members),
            nodes=len(counts),
            rails=float(counts.min()),
            node_B_per_s=min(
                (port_rate(x, int(counts.max()), staged=apart is not None, device=apart or "") for x in near),
                default=np.inf,
            ),
            net_B_per_s=rate,
            node_s=max((x.latency_s for x in near), default=0.0),
            net_s=step_s,
            in_switch=bool(near) and all(x.switched and x.reduces_in_network for x in near),
            start_s=max((x.start_s for x in [*near, *far]), default=0.0),
            ramp_s=max((x.ramp_s for x in near), default=0.0),
            net_ramp_s=max((x.ramp_s for x in far), default=0.0),
        )
        return shape, min([*near, *far], key=lambda x: x.B_per_s * x.efficiency, default=None)

    def _transfer(self, op: Transfer, pair: Ints) -> Demand:
        route = self._route(pair)
        if len(route) == 0:
            nothing = closed_form(0.0, "a rank to itself", None)
            return Demand(latency_s=0.0, volume_B=0.0, cap_B_per_s=np.inf, nbytes=op.nbytes, estimate=nothing)
        fabric = self.cluster.fabric
        near = bool(fabric.node_of(pair[:1])[0] == fabric.node_of(pair[1:])[0])
        link = (self.cluster.intra if near else self.cluster.inter)[self.cluster.device_index[pair[0]]]
        assert link is not None
        latency = link.start_s + float(fabric.latency_s[route].sum())
        rate = float(fabric.capacity_B_per_s[route].min())
        ends = {end.name for k in self.cluster.device_index[pair] if (end := self.cluster.inter[k]) is not None}
        known = measured.link_seconds(link, "send_recv", 2, op.nbytes) if near or len(ends) == 1 else None
        if known is not None:
            estimate = Estimate(seconds=known, method="measured", source=f"{link.name}, calibrated")
            return Demand(latency_s=known, volume_B=0.0, cap_B_per_s=rate, nbytes=op.nbytes, estimate=estimate)
        rate = send_rate(op.nbytes, rate, link, inside_host=near)
        return Demand(
            latency_s=latency,
            volume_B=float(op.nbytes),
            cap_B_per_s=rate,
            nbytes=op.nbytes,
            estimate=over_links("send_recv", latency + op.nbytes / rate, latency, link, link.name, away=not near),
        )

    def _route(self, pair: Ints) -> Ints:
        """Links from one rank to another."""
        key = (int(pair[0]), int(pair[1]))
        if key not in self._routes:
            links = self.cluster.fabric.routes(pair[:1], pair[1:])[0]
            self._routes[key] = links[links >= 0]
        return self._routes[key]

    def _storage(self, op: Read | Write, rank: int) -> Demand:
        store = self.cluster.stores[op.store]
        write = isinstance(op, Write)
        alone = store_demand(store, op.requests, op.streams, write=write)
        route = self.cluster.fabric.store_routes(op.store, np.array([rank]), write=write)[0]
        rate = min(alone.cap_B_per_s, float(self.cluster.fabric.capacity_B_per_s[route[route >= 0]].min()))
        return Demand(
            latency_s=alone.latency_s,
            volume_B=float(op.nbytes),
            cap_B_per_s=rate,
            nbytes=op.nbytes,
            estimate=closed_form(alone.latency_s + op.nbytes / rate, store.name, STORE_ERROR),
        )

    def link_use(self, op: Op, instances: Ints) -> tuple[Ints, Ints, Floats]:
        """Rows (instance, link, bytes over the link per byte of the demand's volume) for every instance."""
        number = np.arange(len(instances))
        if isinstance(op, Compute):
            return number, np.full(len(number), len(self.cluster.fabric.capacity_B_per_s)), np.ones(len(number))
        if isinstance(op, Collective):
            return self._collective_links(op, instances)
        if isinstance(op, Transfer) and len(instances) == 1:
            route = self._route(instances[0])
            return np.zeros(len(route), dtype=np.int64), route, np.ones(len(route))
        if isinstance(op, Transfer):
            routes = self.cluster.fabric.routes(instances[:, 0], instances[:, 1])
        else:
            assert isinstance(op, (Read, Write))
            routes = self.cluster.fabric.store_routes(op.store, instances[:, 0], write=isinstance(op, Write))
        real = routes >= 0
        return np.broadcast_to(number[:, None], routes.shape)[real], routes[real], np.ones(int(real.sum()))

    def _collective_links(self, op: Collective, instances: Ints) -> tuple[Ints, Ints, Floats]:
        """Ports of every member, and the core between those that follow each other on different leaves."""
        _, first, alike = np.unique(self.signature(instances), return_index=True, return_inverse=True)
        demands = self.demands(op, instances[first])
        node_weight = np.array([d.node_weight for d in demands])[alike.reshape(-1)]
        net_weight = np.array([d.net_weight for d in demands])[alike.reshape(-1)]
        fabric, ranks = self.cluster.fabric, instances.ravel()
        rows = np.repeat(np.arange(len(instances)), instances.shape[1])
        between = fabric.core_links(ranks, np.roll(instances, -1, axis=1).ravel())
        near, far = fabric.intra_ports(ranks), fabric.net_ports(ranks)
        pairs = [(pair, weight[rows]) for pair, weight in ((near, node_weight), (far, net_weight)) if weight.any()]
        own = [(rows[p >= 0], p[p >= 0], weight[p >= 0]) for pair, weight in pairs for p in pair]
        core = [(rows, links, net_weight[rows]) for links in between.T] if net_weight.any() else []
        crossing = [tuple(c[(links >= 0) & (w > 0)] for c in (r, links, w)) for r, links, w in core]
        if crossing:
            row, link, weight = (np.concatenate(c) for c in zip(*crossing, strict=True))
            own.append(_summed(row, link, weight, len(fabric.capacity_B_per_s)))
        if not own:
            return rows[:0], rows[:0], np.empty(0)
        row, link, weight = (np.concatenate(c) for c in zip(*own, strict=True))
        return row[weight > 0], link[weight > 0], weight[weight > 0]


def _summed(rows: Ints, links: Ints, weights: Floats, n_links: int) -> tuple[Ints, Ints, Floats]:
    """Equal (row, link) once, with the sum of its weights."""
    code, inverse = np.unique(rows * n_links + links, return_inverse=True)
    total = np.bincount(inverse.reshape(-1), weights, minlength=len(code)).astype(np.float64)
    return code // n_links, code % n_links, total


def _first_on_host(node: Ints) -> Ints:
    """(k, members) position of the first member of the row on the same host, from hosts (k, members)."""
    k, members = node.shape
    code = (np.arange(k)[:, None] * (int(node.max()) + 1) + node).ravel()
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)].reshape(k, members) % members, dtype=np.int64)
