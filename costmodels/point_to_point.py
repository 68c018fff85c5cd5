"""One rank sends to another over one link (or a way of several, of which the slowest decides)."""

from math import sqrt

from costmodels.specs import LinkSpec


def seconds(nbytes: float, latency_s: float, B_per_s: float, *, start_s: float = 0.0, ramp_s: float = 0.0) -> float:
    """Launch and handshake, the way of the first byte, the bytes themselves and the filling of the pipeline (`LinkSpec.ramp_s`)."""
    moving_s = nbytes / B_per_s
    return start_s + latency_s + moving_s + 2 * sqrt(moving_s * ramp_s)


def send_recv(nbytes: float, link: LinkSpec, *, inside_host: bool) -> float:
    """Seconds of a send and its receive over `link`. Copies inside a host go out in one piece and have no pipeline to fill."""
    ramp_s = 0.0 if inside_host else link.ramp_s
    return seconds(nbytes, link.latency_s, link.B_per_s * link.efficiency, start_s=link.start_s, ramp_s=ramp_s)
