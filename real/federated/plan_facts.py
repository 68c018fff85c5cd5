"""What the processes of a run have to know of its network, in a file."""

import hashlib
import hmac
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from real.federated.shaping import Route

PLAN, RESULT, NETWORK, KEYS = "plan.json", "rank{rank}.json", "network.json", "keys"
"""Files of a run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Links and relays; the port at which each rank listens; the port at which rank a reaches rank b; what nonces are made of."""

    capacity_B_per_s: list[float]
    routes: list[Route]
    listens: list[int]
    reach: list[list[int]]
    secret: str = field(repr=False)

    def save(self, path: Path) -> None:
        """For the owner's eyes."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)

    @classmethod
    def load(cls, path: Path) -> "Facts":
        found = json.loads(path.read_text())
        routes = [
            Route(
                port=r["port"],
                target=tuple(r["target"]),
                there=tuple(r["there"]),
                back=tuple(r["back"]),
                there_s=r["there_s"],
                back_s=r["back_s"],
            )
            for r in found.pop("routes")
        ]
        return cls(routes=routes, **found)

    def nonce(self, number: int) -> str:
        """Of a round; whoever does not know the secret cannot guess it."""
        return hmac.new(self.secret.encode(), str(number).encode(), hashlib.sha256).hexdigest()[:32]


def rank_name(rank: int) -> str:
    """As in its certificate."""
    return f"rank-{rank}"
