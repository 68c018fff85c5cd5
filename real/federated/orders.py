"""What the server tells each client after training: whom to serve, what to fetch, and of what its experts are made.

An expert is called `expert-3` by its number at its owner; what gossip sends is `share`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from real.federated.granting import Grants, fresh
from simcore.federated.exchange import fetches
from simcore.federated.rounds import Round

SHARE = "share"


def client_name(client: int) -> str:
    """As in its certificate."""
    return f"client-{client}"


def client_of(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


def expert_item(expert: int) -> str:
    """`expert` by its number at its owner."""
    return f"expert-{expert}"


class Part(BaseModel):
    """`weight` of a client's expert, `own` or fetched, in the mixture that becomes `expert`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    expert: int = Field(ge=0)
    client: int = Field(ge=0)
    source: int = Field(ge=0)
    weight: float = Field(ge=0, le=1)


class Orders(BaseModel):
    """Of one client in round `number`. Names of items by client."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = Field(ge=0)
    nonce: str
    valid_s: float = Field(gt=0)
    serve: dict[int, tuple[str, ...]] = Field(description="What each peer may fetch.")
    fetch: dict[int, tuple[str, ...]] = Field(description="What is to be fetched from each peer.")
    mixture: tuple[Part, ...] = Field((), description="Of what the experts are made, in order; empty: they stay.")
    share: float = Field(0.0, ge=0, le=1, description="Part of the numbers that gossip averages.")

    def grants(self) -> Grants:
        """As the peer service has them."""
        items = {client_name(c): items for c, items in self.serve.items()}
        return Grants(number=self.number, nonce=self.nonce, valid_s=self.valid_s, items=items)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flow:
    target: int
    source: int
    item: str


def orders_of(decided: Round, valid_s: float) -> dict[int, Orders]:
    """The orders of each client that is there, all with one new nonce. Relays are not among what clients do for real."""
    there, nonce = np.flatnonzero(decided.there).tolist(), fresh()
    serve: dict[int, dict[int, list[str]]] = {c: {} for c in there}
    fetch: dict[int, dict[int, list[str]]] = {c: {} for c in there}
    for flow in _flows(decided):
        serve[flow.source].setdefault(flow.target, []).append(flow.item)
        fetch[flow.target].setdefault(flow.source, []).append(flow.item)
    return {
        c: Orders(
            number=decided.number,
            nonce=nonce,
            valid_s=valid_s,
            serve=_tuples(serve[c]),
            fetch=_tuples(fetch[c]),
            mixture=tuple(_mixture(decided, c)),
            share=decided.share,
        )
        for c in there
    }


def _flows(decided: Round) -> Iterator[_Flow]:
    assert not len(decided.after), "relays are only simulated"
    if decided.mixing is not None:
        found = fetches(decided.mixing)
        for target, source, expert in zip(*(x.tolist() for x in found), strict=True):
            yield _Flow(target=target, source=source, item=expert_item(expert % decided.mixing.experts))
        return
    for target, source in zip(decided.flows.target.tolist(), decided.flows.source.tolist(), strict=True):
        yield _Flow(target=target, source=source, item=SHARE)


def _mixture(decided: Round, client: int) -> Iterator[Part]:
    if decided.mixing is None:
        return
    experts = decided.mixing.experts
    for expert in range(experts):
        sources, weights = decided.mixing.of(client * experts + expert)
        for source, weight in zip(sources.tolist(), weights.tolist(), strict=True):
            yield Part(expert=expert, client=source // experts, source=source % experts, weight=weight)


def _tuples(lists: Mapping[int, list[str]]) -> dict[int, tuple[str, ...]]:
    return {peer: tuple(items) for peer, items in lists.items()}
