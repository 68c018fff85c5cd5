"""A microbatch whose layers fetch parameters and scatter gradients while they compute (ZeRO 3, and 2 without chunks).

The next layer's parameters are under way while a layer computes, and it waits for them. Gradients leave on a stream of their own.
Nothing waits for them before the optimizer, so that those of a backward pass may still be leaving during the next forward pass.
Both streams cross the same ports: at the same time each goes at `together` of the rate that it has alone. With `settles` they have
one communicator, which runs one collective at a time, and every backward pass ends when its gradients have left (torch's FSDP).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """(rows,) seconds of one microbatch on a stage: of computing both ways, and alone of gathering all parameters (once for each
    way) and of reducing all gradients. `lost` is the share of computing that communication beside it takes."""

    forward: Floats
    backward: Floats
    gather: Floats
    reduce: Floats
    together: Floats
    lost: float
    settles: bool = False


def in_streams(s: Streams) -> tuple[Floats, Floats, Floats, Floats]:
    """(rows,) seconds of a forward and of a backward pass once a few microbatches are through, of gradients that every microbatch
    adds to those that wait to leave, and of those that still wait after the last backward pass beyond that."""
    waiting = np.zeros_like(s.forward)
    for _ in range(2):  # the second time with what the first left behind
        backward, leaving = _one_way(s, s.backward, s.reduce + waiting)
        forward, left = _one_way(s, s.forward, leaving)
        grows, waiting = left - waiting, left
    return forward, backward, np.maximum(grows, 0.0), leaving


def _one_way(s: Streams, computing: Floats, waiting: Floats) -> tuple[Floats, Floats]:
    """Seconds of a pass at whose start `waiting` seconds of gradients are to leave, and what of them is left at its end."""
    if s.settles:
        moving = s.gather + waiting
        seconds = np.maximum(computing, moving) + s.lost * np.minimum(computing, moving)
        return seconds, np.zeros_like(seconds)
    both = np.minimum(s.gather, waiting)
    gathering = s.gather + both * (1.0 / s.together - 1.0)
    busy = np.minimum(computing, gathering + waiting - both)
    seconds = np.maximum(computing, gathering) + s.lost * busy
    return seconds, np.maximum(waiting - both - (seconds - gathering), 0.0)
