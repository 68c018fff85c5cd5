"""Replay: how long an iteration takes over all classes of devices, in closed form between one reduction of gradients and the next.

On each class three streams run: the host launches operators in program order; the device computes each after its launch and after
the one before; gradients are reduced bucket by bucket, each when every class has it ready and the one before is reduced. While one
is under way a device computes more slowly (`overlap_slowdown`). The same recurrence as the engine's, without its events.

With launches that end at H, kernels of k seconds and C their sums, kernel i ends at C[i] + max over j <= i of (H[j] - C[j - 1]).
Under a slowdown that holds in the clock of work done, which runs slower while bytes move.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.plan import Collective, Group
from simcore.qsync.local import Floats, LocalGraph
from simcore.qsync.settings import Setting

FAR_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replayed:
    """One iteration: seconds until each class is done with its optimizer, and of the buckets' start and end."""

    iteration_s: float
    class_s: tuple[float, ...]
    computed_s: tuple[float, ...]  # end of each class's backward pass
    ready_s: tuple[tuple[float, ...], ...]  # by bucket: when each class has it ready
    bucket_start_s: tuple[float, ...]
    bucket_end_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Replayer:
    """The classes of a cluster, whose buckets are the same, and how long each bucket takes over all ranks."""

    locals: tuple[LocalGraph, ...]
    bucket_s: Floats  # (buckets,)

    def replay(self, settings: Sequence[Setting]) -> Replayed:
        """An iteration with a setting for each class, in their order."""
        runs = [_Run(local, chosen) for local, chosen in zip(self.locals, settings, strict=True)]
        end, readies, starts, ends = 0.0, [], [], []
        for b, seconds in enumerate(self.bucket_s.tolist()):
            ready = tuple(run.advance(run.step_of(b)) for run in runs)
            readies.append(ready)
            start = max(end, *ready)
            end = start + seconds
            starts.append(start)
            ends.append(end)
            for run in runs:
                run.moves(start, end)
        computed = tuple(run.advance(run.steps) for run in runs)
        class_s = tuple(max(end, c) + run.local.optimizer_s for c, run in zip(computed, runs, strict=True))
        return Replayed(
            iteration_s=max(class_s),
            class_s=class_s,
            computed_s=computed,
            ready_s=tuple(readies),
            bucket_start_s=tuple(starts),
            bucket_end_s=tuple(ends),
        )


def replayer(locals_: Sequence[LocalGraph], cluster: Cluster, cost: Costs) -> Replayer:
    """Buckets as all-reduces over every rank of the cluster, priced by its cost model."""
    ranks = Group(axes=(("dp", cluster.n_ranks, 1),)).instances(("dp",))
    seconds = []
    for nbytes in locals_[0].bucket_B.tolist() if cluster.n_ranks > 1 else ():
        op = Collective(kind="all_reduce", group="all", along=("dp",), nbytes=int(nbytes), dtype="float32")
        (demand,) = cost.demands(op, ranks)
        seconds.append(demand.latency_s + (demand.volume_B / demand.cap_B_per_s if demand.volume_B else 0.0))
    return Replayer(locals=tuple(locals_), bucket_s=np.array(seconds))


@dataclass(slots=True)
class _Run:
    """One class on its way through its steps: all operators forward, then all in reverse."""

    local: LocalGraph
    chosen: Setting
    steps: int = field(init=False)
    launched: Floats = field(init=False)
    work: Floats = field(init=False)
    at: int = 0
    now_s: float = 0.0
    wall: list[float] = field(default_factory=lambda: [0.0])
    done: list[float] = field(default_factory=lambda: [0.0])

    def __post_init__(self) -> None:
        self.steps = 2 * self.local.n
        device, host = self.chosen.device_s, self.chosen.host_s
        self.launched = np.cumsum(np.concatenate([host[:, 0], host[::-1, 1]]))
        self.work = np.concatenate([[0.0], np.cumsum(np.concatenate([device[:, 0], device[::-1, 1]]))])

    def step_of(self, bucket: int) -> int:
        """Steps that are done once a bucket is complete."""
        return self.steps - int(self.local.bucket_step[bucket])

    def advance(self, to: int) -> float:
        """When the first `to` steps have ended."""
        if to > self.at:
            ended = self._done(self.now_s) + float(self.work[to] - self.work[self.at])
            if self.launched[to - 1] > self.now_s:
                waits = self._dones(self.launched[self.at : to]) - self.work[self.at : to]
                ended = max(ended, float(waits.max() + self.work[to]))
            self.at, self.now_s = to, self._wall(ended)
        return self.now_s

    def moves(self, start_s: float, end_s: float) -> None:
        """Bytes move between these times."""
        slowdown = self.local.device.overlap_slowdown
        if slowdown and end_s > start_s:
            first = self.done[-1] + start_s - self.wall[-1]
            self.wall += [start_s, end_s]
            self.done += [first, first + (1.0 - slowdown) * (end_s - start_s)]

    def _done(self, wall_s: float) -> float:
        return float(self._dones(np.array([wall_s]))[0]) if len(self.wall) > 1 else wall_s

    def _dones(self, wall_s: Floats) -> Floats:
        """Seconds of undisturbed work that a device which never waits does until then."""
        if len(self.wall) == 1:
            return wall_s
        far = FAR_S - self.wall[-1]
        return np.interp(wall_s, [*self.wall, FAR_S], [*self.done, self.done[-1] + far])

    def _wall(self, done_s: float) -> float:
        if len(self.wall) == 1:
            return done_s
        far = FAR_S - self.wall[-1]
        return float(np.interp(done_s, [*self.done, self.done[-1] + far], [*self.wall, FAR_S]))
