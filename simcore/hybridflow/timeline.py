"""An iteration in closed form: calls on pools, each as soon as its inputs are there and its pool is free, in the dataflow's order.

Calls of one pool run one after the other, calls of different pools at the same time (HybridFlow, section 2.3). Unlike the paper's
`d_cost` there is no barrier between stages, and what goes from pool to pool takes its time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from simcore.hybridflow.dataflow import Dataflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """When calls run; `seconds` is the iteration."""

    start_s: Mapping[str, float]
    end_s: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return max(self.end_s.values())


def timeline(
    dataflow: Dataflow, seconds: Mapping[str, float], pool_of: Mapping[str, int], *, transfer_s: float = 0.0
) -> Timeline:
    """`seconds` by call, `pool_of` by role; `transfer_s` is added where a result goes to another pool.

    It grows with every duration, so that with the least durations it bounds all iterations from below.
    """
    free: dict[int, float] = {}
    start: dict[str, float] = {}
    end: dict[str, float] = {}
    where: dict[str, int] = {}
    for call in dataflow.calls:
        waits = dataflow.inputs(call)
        if not call.role:
            start[call.name] = end[call.name] = max((end[a] for a in waits), default=0.0)
            continue
        pool = pool_of[call.role]
        ready = max((end[a] + (transfer_s if where[a] != pool else 0.0) for a in waits), default=0.0)
        begin = max(ready, free.get(pool, 0.0))
        start[call.name], end[call.name] = begin, begin + seconds[call.name]
        where[call.name], free[pool] = pool, end[call.name]
    return Timeline(start_s=start, end_s=end)
