"""Small worlds for the engine's tests: a fabric of plain links and costs that can be worked out by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from costmodels.specs import DeviceSpec, Estimate
from simcore.cluster import Cluster
from simcore.demand import Demand
from simcore.plan import Collective, Compute, Op, Transfer

Ints = NDArray[np.int64]


def device(name: str = "plain", *, memory_B: float = 1e9, slowdown: float = 0.0) -> DeviceSpec:
    return DeviceSpec(
        name=name, title=name, kind="gpu", vendor="none", architecture="none", memory_B=memory_B, memory_B_per_s=1e12,
        flop_per_s={"float32": 1e12}, overlap_slowdown=slowdown,
    )  # fmt: skip


@dataclass
class Ports:
    """Every rank has one link out (rank) and one in (n + rank); trunks join blocks of ranks to a core, up and down."""

    n_ranks: int
    block: int
    capacity_B_per_s: NDArray[np.float64] = field(init=False)
    latency_s: NDArray[np.float64] = field(init=False)
    port: float = 1.0
    trunk: float = 2.0

    def __post_init__(self) -> None:
        self.n_blocks = -(-self.n_ranks // self.block)
        sizes = [self.port] * (2 * self.n_ranks) + [self.trunk] * (2 * self.n_blocks)
        self.capacity_B_per_s = np.array(sizes, dtype=np.float64)
        self.latency_s = np.zeros(len(sizes))

    def routes(self, sources: Ints, targets: Ints) -> Ints:
        n, a, b = self.n_ranks, sources // self.block, targets // self.block
        away = a != b
        up = np.where(away, 2 * n + a, -1)
        down = np.where(away, 2 * n + self.n_blocks + b, -1)
        return np.stack([sources, n + targets, up, down], axis=1)

    def store_routes(self, store: str, ranks: Ints, *, write: bool) -> Ints:
        return ranks[:, None]

    def node_of(self, ranks: Ints) -> Ints:
        return ranks // self.block

    def link_name(self, link: int) -> str:
        return f"link {link}"

    def graph(self) -> nx.DiGraph:
        raise AssertionError("not needed")


def cluster(
    n: int, *, block: int = 4, devices: Sequence[DeviceSpec] = (), index: Sequence[int] = (), **ports: float
) -> Cluster:
    kinds = tuple(devices) or (device(),)
    return Cluster(
        name="ports", devices=kinds, device_index=np.array(index or [0] * n, dtype=np.int64),
        fabric=Ports(n, block, **ports), intra=(None,) * len(kinds), inter=(None,) * len(kinds),
    )  # fmt: skip


@dataclass
class PlainCost:
    """Compute takes kernel.count seconds times the device's factor; bytes move at 1 B/s a rank after `latency_s`."""

    world: Cluster
    latency_s: float = 0.0
    factor: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)

    def compute(self, op: Compute, device: DeviceSpec) -> Estimate:
        work = sum(self.seconds.get(k.count, k.count) for k in op.kernels) * self.factor.get(device.name, 1.0)
        return Estimate(seconds=work, method="closed_form", source="hand")

    def signature(self, instances: Ints) -> Ints:
        node = self.world.fabric.node_of(instances.ravel()).reshape(instances.shape)
        return (node == node[:, :1]) @ (1 << np.arange(instances.shape[1], dtype=np.int64) % 62)

    def demands(self, op: Op, instances: Ints) -> list[Demand]:
        out = []
        for row in instances:
            m = len(row)
            volume, latency = float(op.nbytes), self.latency_s
            if isinstance(op, Collective):
                steps = 2 * (m - 1) if op.kind == "all_reduce" else m - 1
                volume, latency = steps * op.nbytes / m, steps * self.latency_s
            estimate = Estimate(seconds=latency + volume, method="closed_form", source="hand")
            out.append(Demand(latency_s=latency, volume_B=volume, cap_B_per_s=1.0, nbytes=op.nbytes, estimate=estimate))
        return out

    def link_use(self, op: Op, instances: Ints) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """A ring for collectives, the route for transfers; one byte over every link for each byte of volume."""
        k, m = instances.shape
        sources, targets = instances, np.roll(instances, -1, axis=1)
        if isinstance(op, Transfer) or m == 1:
            sources, targets = instances[:, :1], instances[:, -1:]
        routes = self.world.fabric.routes(sources.ravel(), targets.ravel())
        number = np.repeat(np.arange(k), sources.shape[1])[:, None] + np.zeros_like(routes)
        real = routes >= 0
        if m == 1:
            real &= False
        code = number[real] * 1_000_000 + routes[real]
        unique, counts = np.unique(code, return_counts=True)
        return unique // 1_000_000, unique % 1_000_000, counts.astype(np.float64)
