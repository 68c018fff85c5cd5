"""Pairs of clients that exchange models in a round of gossip."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EXPLORE = 4
"""Every so many rounds pairs are drawn at random, so that what one client learnt reaches all, however the links differ."""


def random_pairs(clients: Ints, rng: np.random.Generator) -> Ints:
    """(pairs, 2): everybody once; of an odd number one stays alone."""
    shuffled = rng.permutation(clients)
    return shuffled[: len(shuffled) // 2 * 2].reshape(-1, 2)


def matched_pairs(clients: Ints, rate_B_per_s: Floats, region: Ints, number: int, rng: np.random.Generator) -> Ints:
    """Pairs of alike bandwidth within a region, as adaptive peer selection wants them: a slow client holds up one other, not many.

    `rate_B_per_s` and `region` are by client; `number` is the round's. Sorting by rate and pairing neighbours gives the largest sum
    of the pairs' rates, each the smaller of two. (SAPS-PSGD, Tang et al. 2020, also keeps a graph of recent exchanges connected;
    here every fourth round is random instead.)
    """
    shuffled = rng.permutation(clients)
    if number % EXPLORE == EXPLORE - 1:
        return shuffled[: len(shuffled) // 2 * 2].reshape(-1, 2)
    order = np.lexsort((-rate_B_per_s[shuffled], region[shuffled]))
    return shuffled[order][: len(shuffled) // 2 * 2].reshape(-1, 2)
