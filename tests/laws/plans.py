"""Random plans over random worlds, for hypothesis."""

from dataclasses import dataclass

import numpy as np

from costmodels.kernels import kernel
from simcore.cluster import Cluster
from simcore.faults import Event
from simcore.plan import Collective, Compute, Group, Op, Plan, Task, Transfer
from tests.laws.worlds import PlainCost, cluster, device


@dataclass(frozen=True)
class Case:
    plan: Plan
    world: Cluster
    cost: PlainCost
    faults: tuple[Event, ...]


def work(group: str, units: int, stream: str = "compute") -> Compute:
    return Compute(group=group, kernels=(kernel("copy", "float32", count=units, elements=1),), stream=stream)


def random_case(seed: int, *, most_ranks: int = 64, faults: bool = True) -> Case:
    """A training-like plan: groups on a mesh, stragglers, unequal devices, collectives, transfers, faults."""
    rng = np.random.default_rng(seed)
    sizes = [int(rng.choice([1, 2, 4])) for _ in range(3)]
    n = int(np.prod(sizes))
    while n > most_ranks:
        sizes[0], n = 1, n // sizes[0]
    axes = tuple(
        (name, size, int(np.prod(sizes[i + 1 :])))
        for i, (name, size) in enumerate(zip(("pp", "dp", "tp"), sizes, strict=True))
    )
    groups = {"all": Group(axes=axes)}
    for s in range(sizes[0]):
        groups[f"stage{s}"] = Group(axes=axes[1:], offset=s * axes[0][2])
    groups["some"] = Group.listed(sorted(rng.choice(n, size=int(rng.integers(1, n + 1)), replace=False).tolist()))
    tasks = tuple(_tasks(rng, groups, sizes))
    plan = Plan(name="random", n_ranks=n, groups=groups, tasks=tasks, workload={"iterations": int(rng.integers(1, 3))})
    slowdown = float(rng.choice([0.0, 0.25]))
    kinds = (device("a", slowdown=slowdown), device("b", slowdown=slowdown))
    index = [0] * n if rng.random() < 0.5 else rng.integers(0, 2, n).tolist()
    world = cluster(
        n, block=int(rng.choice([2, 4, 8])), devices=kinds, index=index, trunk=float(rng.choice([0.5, 1.0, 100.0]))
    )
    cost = PlainCost(
        world, latency_s=float(rng.choice([0.0, 0.125])), factor={"a": 1.0, "b": float(rng.choice([1.0, 1.5]))}
    )
    return Case(plan, world, cost, tuple(_faults(rng, world)) if faults and rng.random() < 0.6 else ())


def _tasks(rng: np.random.Generator, groups: dict[str, Group], sizes: list[int]) -> list[Task]:
    names = list(groups)
    tasks: list[Task] = []
    for i in range(int(rng.integers(3, 14))):
        known = [t.id for t in tasks]
        after = (
            tuple(rng.choice(known, size=min(len(known), int(rng.integers(0, 3))), replace=False).tolist())
            if known
            else ()
        )
        tasks.append(Task(f"t{i}", _op(rng, groups, names, sizes), after))
    return tasks


def _op(rng: np.random.Generator, groups: dict[str, Group], names: list[str], sizes: list[int]) -> Op:
    group, kind = str(rng.choice(names)), rng.integers(0, 4)
    size = int(rng.integers(1, 9))
    if kind == 1:
        axes = [axis for axis, _, _ in groups[group].axes]
        along = tuple(rng.choice(axes, size=int(rng.integers(1, len(axes) + 1)), replace=False).tolist())
        op = str(rng.choice(["all_reduce", "all_gather", "reduce_scatter"]))
        return Collective(
            kind=op,
            group=group,
            along=along,
            nbytes=size,
            repeat=int(rng.integers(1, 3)),
            stream=str(rng.choice(["comm", "grad"])),
        )  # type: ignore[arg-type]
    if kind == 2 and sizes[0] > 1:
        s = int(rng.integers(0, sizes[0] - 1))
        ends = (f"stage{s}", f"stage{s + 1}") if rng.random() < 0.5 else (f"stage{s + 1}", f"stage{s}")
        return Transfer(source=ends[0], target=ends[1], nbytes=size)
    return work(group, size, str(rng.choice(["compute", "compute", "side"])))


def _faults(rng: np.random.Generator, world: Cluster) -> list[Event]:
    found = []
    for _ in range(int(rng.integers(1, 4))):
        at = float(rng.integers(0, 30)) + 0.5
        rank, link = int(rng.integers(world.n_ranks)), int(rng.integers(len(world.fabric.capacity_B_per_s)))
        what = rng.integers(0, 4)
        if what == 0:
            found.append(Event(at, 0.5, ranks=(rank,)))
        elif what == 1:
            found.append(Event(at, 0.25, links=(link,)))
        elif what == 2:
            found += [Event(at, 0.0, links=(link,)), Event(at + 7.0, np.inf, links=(link,))]
        else:
            found.append(Event(at, 0.0, ranks=(rank,)))
    return sorted(found, key=lambda e: e.at_s)
