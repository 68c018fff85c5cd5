"""One rank sends to another over one link (or a way of several, of which the slowest decides)."""

from math import sqrt

from costmodels.specs import LinkSpec


def filled_rate(moving_s: float, nbytes: float, ramp_s: float) -> float:
    """Bytes per second once the filling of the pipeline is counted in.

    Bytes that would take `moving_s` move in chunks through steps; with the best size of chunks that takes 2 sqrt(moving_s ramp_s)
    longer. (k chunks through s steps of latency a: (k + s) (a + moving_s / k), least at k = sqrt(s moving_s / a).)
    """
    return nbytes / (moving_s + 2 * sqrt(moving_s * ramp_s))


def send_recv(nbytes: float, link: LinkSpec, *, inside_host: bool) -> float:
    """Seconds of a send and its receive over `link`: launch and handshake, the way of the first byte, and all bytes."""
    rate = send_rate(nbytes, link.B_per_s * link.efficiency, link, inside_host=inside_host)
    return link.start_s + link.latency_s + nbytes / rate


def send_rate(nbytes: float, B_per_s: float, link: LinkSpec, *, inside_host: bool) -> float:
    """Bytes per second over a way whose slowest link carries `B_per_s`. Inside a host a copy goes out in one piece, with no
    pipeline to fill."""
    if inside_host or nbytes == 0:
        return B_per_s
    return filled_rate(nbytes / B_per_s, nbytes, link.ramp_s)
