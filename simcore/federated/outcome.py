"""What came of a round, and the rules by which it was waited for."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simcore.cluster import Cluster
from simcore.federated.aggregation import Mixing

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """For whom the server waits: `quorum` of the chosen clients (1: all that have not left), at most `deadline_s`.

    Peers are waited for `peer_timeout_s` after the server has gone on.
    """

    quorum: float = 1.0
    deadline_s: float | None = None
    peer_timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One round. Bytes are those that were to be sent; `late` and `left` are clients whose training did not count.

    `unheard` are clients whose experts some client waited for in vain or had to refuse. `link` is the one that carried most for its
    capacity. `energy_J` is that of training at rated power, `usd` devices and traffic as far as the catalogue has prices; None
    where it has none.
    """

    number: int
    begins_s: float
    seconds: float
    trained_s: float
    chosen: int
    there: int
    left: tuple[int, ...]
    late: tuple[int, ...]
    unheard: tuple[int, ...]
    refreshed: bool
    flows: int
    server_up_B: int
    server_down_B: int
    peer_B: int
    cosine: float | None
    link: str
    energy_J: float | None
    usd: float | None
    mixing: Mixing | None = field(repr=False, default=None)

    def without_mixing(self) -> "Outcome":
        """The same without its matrix, which for 10,000 clients is some megabytes."""
        return replace(self, mixing=None)


def traffic_usd(cluster: Cluster, load_B: Floats) -> float:
    """What bytes over links (links,) cost where regions lie apart, at the catalogue's prices."""
    fabric = cluster.fabric
    price = getattr(fabric, "price_usd_per_B", None)
    return 0.0 if price is None else float((price * load_B).sum())


def frame(outcomes: list[Outcome]) -> "pd.DataFrame":
    """A row for each round; lists of clients become their counts."""
    import pandas as pd

    names = [n for n in Outcome.__slots__ if n != "mixing"]
    rows = [{n: len(v) if isinstance(v := getattr(o, n), tuple) else v for n in names} for o in outcomes]
    return pd.DataFrame(rows, columns=names)


def summary(table: "pd.DataFrame") -> str:
    """What all rounds in `frame` amount to, in a sentence."""
    sent = table.server_up_B.sum() + table.server_down_B.sum()
    away = f"{table.left.sum()} clients left, {table.late.sum()} came late, {table.unheard.sum()} failed peers"
    said = (
        f"{len(table)} rounds in {table.seconds.sum():.4g} s; through the server {sent / 1e6:.4g} MB, among peers "
        f"{table.peer_B.sum() / 1e6:.4g} MB; {away}"
    )
    energy = (
        f"; training took {table.energy_J.sum() / 1e3:.4g} kJ at rated power" if table.energy_J.notna().all() else ""
    )
    return said + energy
