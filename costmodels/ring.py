"""A ring all-reduce whose members arrive at different times: a max-plus recurrence over its steps."""

import numpy as np
from numpy.typing import NDArray


def ring_steps(arrival_s: NDArray[np.float64], nbytes: float, latency_s: float, B_per_s: float) -> NDArray[np.float64]:
    """When each of n members has the whole sum: (n,) seconds from (n,) arrivals.

    In each of 2 (n - 1) steps every member sends 1/n of the buffer to the next one and begins once it has finished the step
    before and its predecessor has: t'[i] = max(t[i], t[i - 1]) + latency_s + nbytes / n / B_per_s
    (Patarasuk and Yuan 2009; with equal arrivals the sum is the closed form 2 (n - 1) (latency + nbytes / n / B)).
    """
    n = len(arrival_s)
    step_s = latency_s + nbytes / n / B_per_s
    now = np.array(arrival_s, dtype=np.float64)
    before = np.empty_like(now)
    for _ in range(2 * (n - 1)):
        before[0], before[1:] = now[-1], now[:-1]
        np.maximum(now, before, out=now)
        now += step_s
    return now
