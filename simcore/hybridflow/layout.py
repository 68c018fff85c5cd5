"""Which ranks a pool has, and the groups of the plan that its roles work in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simcore.hybridflow.pool_choice import PoolChoice
from simcore.hybridflow.search import Decision
from simcore.plan import Group
from simcore.training.choice import Choice
from simcore.training.chunk_tasks import ENDS
from simcore.training.plans import ends_group

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool with its place: ranks `first` to `first + size - 1`, of which the first `choice.n` work."""

    name: str
    choice: PoolChoice
    first: int
    size: int

    @property
    def ranks(self) -> range:
        """Those that work."""
        return range(self.first, self.first + self.choice.n)


def placed(decision: Decision) -> tuple[Pool, ...]:
    """Pools on ranks of their zones, largest first, so that parts of hosts come last and stay inside one."""
    nxt = {zone: decision.pools[i].zone.first for i, zone in enumerate(decision.zones)}
    order = sorted(range(len(decision.sizes)), key=lambda i: -decision.sizes[i])
    found: dict[int, Pool] = {}
    for i in order:
        zone, size = decision.zones[i], decision.sizes[i]
        found[i] = Pool(name=f"pool{i}", choice=decision.pools[i], first=nxt[zone], size=size)
        nxt[zone] += size
    return tuple(found[i] for i in range(len(order)))


def stage_groups(role: str, choice: Choice, first: int) -> dict[str, Group]:
    """The groups of a role's pipeline stages as training names them, under the role; and of the two ends of a pipeline."""
    groups = choice.groups()
    if choice.pp > 1:
        groups[ENDS] = ends_group(choice)
    return {f"{role}/{name}": Group(axes=g.axes, offset=g.offset + first) for name, g in groups.items()}


def whole_group(pool: Pool) -> Group:
    """All ranks of a pool that work."""
    return Group(axes=(("rank", pool.choice.n, 1),), offset=pool.first)


def gathering_group(groups: Ints, first: int) -> Group:
    """Groups (number, size) of ranks that count from the pool's first; they gather along the axis `member`."""
    members = tuple(int(r) + first for r in groups.ravel())
    return Group(axes=(("group", groups.shape[0], 0), ("member", groups.shape[1], 0)), members=members)


def spread(ranks: Sequence[int], n: int) -> tuple[int, ...]:
    """`n` of the ranks, evenly spaced: who sends the batch to another pool, and who receives it."""
    places = np.linspace(0, len(ranks) - 1, n).astype(np.int64) if n > 1 else np.zeros(1, dtype=np.int64)
    return tuple(ranks[int(i)] for i in places)


def pool_of(pools: Sequence[Pool]) -> Mapping[str, Pool]:
    """By role."""
    return {role: pool for pool in pools for role in pool.choice.roles}
