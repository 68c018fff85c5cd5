"""What an op asks of the network, and what is known of its time: estimates of closed forms, of fitted links, of measurements."""

from dataclasses import dataclass

from costmodels.collective_errors import error_of
from costmodels.collectives import Choice
from costmodels.ports import is_fitted, is_guessed
from costmodels.specs import Estimate, LinkSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one instance of a transfer, collective, read or write asks of the network.

    Alone it takes latency_s + volume_B / cap_B_per_s. `node_weight` and `net_weight` are bytes over the ports inside the host and
    to the network for each byte of volume. `nbytes` is what one rank sends and receives.
    """

    latency_s: float
    volume_B: float
    cap_B_per_s: float
    nbytes: int
    estimate: Estimate
    node_weight: float = 0.0
    net_weight: float = 0.0


def closed_form(seconds: float, source: str, error: float | None) -> Estimate:
    """What follows from a rate; `error` is relative, None where it is not known."""
    return Estimate(seconds=seconds, method="closed_form", source=source, error=error)


def over_links(kind: str, seconds: float, wait_s: float, link: LinkSpec | None, source: str, *, away: bool) -> Estimate:
    """A collective or transfer of which `wait_s` does not grow with its size, `link` the slowest that it needs."""
    if link is None or not seconds:
        return closed_form(seconds, source, None)
    guessed = is_guessed(link)
    return Estimate(
        seconds=seconds,
        method="fitted" if is_fitted(link) else "closed_form",
        source=source,
        error=error_of(kind, wait_s / seconds, away=away, unseen=guessed),
        extrapolated=guessed,
    )


def as_measured(choice: Choice, known_s: float, nbytes: int, link: LinkSpec) -> Demand:
    """The measured time, as volume where there is bandwidth to share."""
    latency = min(choice.latency_s, known_s)
    rate = choice.volume_B / (known_s - latency) if known_s > latency and choice.volume_B else choice.cap_B_per_s
    return Demand(
        latency_s=latency,
        volume_B=choice.volume_B if known_s > latency else 0.0,
        cap_B_per_s=rate,
        nbytes=nbytes,
        estimate=Estimate(seconds=known_s, method="measured", source=f"{link.name}, calibrated"),
        node_weight=choice.node_weight,
        net_weight=choice.net_weight,
    )


def together(parts: list[Estimate]) -> Estimate:
    """Of kernels one after the other: as certain as the worst of them."""
    total = sum(p.seconds for p in parts)
    order = ("measured", "fitted", "closed_form", "roofline")
    worst = max(parts, key=lambda p: order.index(p.method), default=None)
    if worst is None:
        return Estimate(seconds=0.0, method="closed_form", source="nothing to do")
    extrapolated = next((p for p in parts if p.extrapolated), None)
    errors = [p.error * p.seconds for p in parts if p.error is not None]
    return Estimate(
        seconds=total,
        method=worst.method,
        source=(extrapolated or worst).source,
        error=sum(errors) / total if total else None,
        extrapolated=extrapolated is not None,
    )
