"""From an op on certain ranks of a cluster to what it costs: seconds for computing, a demand on links for moving bytes."""

from dataclasses import dataclass

from costmodels.specs import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one instance of a transfer, collective, read or write asks of the network.

    Alone it takes latency_s + volume_B / cap_B_per_s. While it runs at rate r (bytes of `volume_B` per second, r <= cap) it
    uses weight * r of the capacity of each link in `links`, ((link, weight), ...).
    `nbytes` is what one rank sends and receives.
    """

    latency_s: float
    volume_B: float
    cap_B_per_s: float
    links: tuple[tuple[int, float], ...]
    nbytes: int
    estimate: Estimate
