"""What one would write with SimPy alone: a process for each task, a resource for each stream. The baseline of the benchmarks."""

from collections.abc import Generator, Sequence
from typing import Any

import simpy


def play(durations: Sequence[float], after: Sequence[Sequence[int]], stream: Sequence[int]) -> float:
    """Makespan in seconds of tasks with fixed durations, predecessors, and one task at a time on each stream, in order."""
    env = simpy.Environment()
    done = [env.event() for _ in durations]
    last: dict[int, int] = {}

    def task(i: int, waits: list[simpy.Event]) -> Generator[simpy.Event, Any, None]:
        yield from waits
        yield env.timeout(durations[i])
        done[i].succeed()

    for i in range(len(durations)):
        waits = [done[a] for a in after[i]]
        if stream[i] in last:
            waits.append(done[last[stream[i]]])
        last[stream[i]] = i
        env.process(task(i, waits))
    env.run()
    return float(env.now)


def ring(delays_s: Sequence[float], step_s: float) -> float:
    """A ring all-reduce step by step: a process for each rank, which waits for its predecessor's step."""
    env = simpy.Environment()
    n = len(delays_s)
    steps = 2 * (n - 1)
    sent = [[env.event() for _ in range(steps + 1)] for _ in range(n)]

    def rank(i: int) -> Generator[simpy.Event, Any, None]:
        yield env.timeout(delays_s[i])
        sent[i][0].succeed()
        for k in range(steps):
            yield sent[i - 1][k]
            yield env.timeout(step_s)
            sent[i][k + 1].succeed()

    for i in range(n):
        env.process(rank(i))
    env.run()
    return float(env.now)
