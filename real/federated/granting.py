"""Who may have what in a round, and which requests are answered.

The server draws a nonce for each round and tells it to those who exchange something in it, each with a list of its own: who
may fetch what from it. A request names the round, the nonce, and a number used once. It is answered if the certificate of
the one who asks has a grant, the round is on and its time not over, and the number is new; anything else is refused with a
reason.
"""

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

REQUEST_B = 64 * 1024
"""A longer request is not read."""

ATTEMPTS = 4
"""Each peer is answered at most so often in a round: connections break, but nobody's uplink is there for one peer alone."""

Reason = Literal["malformed", "unknown peer", "not granted", "another round", "expired", "replayed", "too often"]


class RefusedError(Exception):
    """A request that is not answered."""

    def __init__(self, reason: Reason, said: str = "") -> None:
        super().__init__(f"{reason}: {said}" if said else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """For round `number`: which `items` each peer may fetch. Good for `valid_s` from when they are taken up."""

    number: int
    nonce: str = field(repr=False)
    valid_s: float
    items: Mapping[str, tuple[str, ...]]


def fresh() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


class Request(BaseModel):
    """What somebody asks for."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    number: int = Field(ge=0, le=2**31)
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$")
    once: str = Field(default_factory=fresh, pattern=r"^[0-9a-f]{32}$")
    items: tuple[str, ...] = Field(min_length=1, max_length=4096)

    def to_bytes(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Request":
        """Raises `RefusedError` for anything else."""
        if len(data) > REQUEST_B:
            raise RefusedError("malformed", f"{len(data):,} B")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise RefusedError("malformed", f"{error.error_count()} errors") from error


class Guard:
    """Decides on requests; many threads may ask at a time. Remembers at most `ATTEMPTS` numbers for each peer that has a grant."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._changed = threading.Condition()
        self._grants: Grants | None = None
        self._until = 0.0
        self._seen: dict[str, set[str]] = {}
        self._waiting: set[str] = set()

    def take_up(self, grants: Grants) -> None:
        """From now on these count, and none from before."""
        with self._changed:
            self._grants, self._until, self._seen = grants, self.clock() + grants.valid_s, {}
            self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait look whether they still should."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, peer: str, number: int, timeout_s: float, alive: Callable[[], bool] = lambda: True) -> None:
        """Until round `number` is on, if it is the next one, at most `timeout_s`, and while the one who asks is `alive`.

        Raises `RefusedError` for a peer that already waits: it would keep others from being heard.
        """
        with self._changed:
            if self._number() >= number or (self._grants is not None and number > self._number() + 1):
                return
            if peer in self._waiting:
                raise RefusedError("too often", "it waits already")
            self._waiting.add(peer)
            try:
                self._changed.wait_for(lambda: self._number() >= number or not alive(), timeout_s)
            finally:
                self._waiting.discard(peer)

    def _number(self) -> int:
        return -1 if self._grants is None else self._grants.number

    def admit(self, peer: str, request: Request) -> None:
        """Raises `RefusedError` unless `peer`, by its certificate, is to be answered; a request that passed never passes again."""
        with self._changed:
            grants = self._grants
            if grants is None or request.number != grants.number:
                given = "none is on" if grants is None else f"round {grants.number} is on"
                raise RefusedError("another round", given)
            if not secrets.compare_digest(request.nonce, grants.nonce):
                raise RefusedError("another round", "its nonce is another")
            granted = grants.items.get(peer, ())
            if not set(request.items) <= set(granted):
                raise RefusedError(
                    "not granted", f"to {peer}: {', '.join(sorted(set(request.items) - set(granted))[:3])}"
                )
            if self.clock() > self._until:
                raise RefusedError("expired", f"after {grants.valid_s:g} s")
            seen = self._seen.setdefault(peer, set())
            if request.once in seen:
                raise RefusedError("replayed")
            if len(seen) >= ATTEMPTS:
                raise RefusedError("too often", f"{ATTEMPTS} times")
            seen.add(request.once)
