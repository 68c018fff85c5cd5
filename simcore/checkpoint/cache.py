"""Plans are kept between saves of one session, under a key that changes when anything on any rank does."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from simcore.checkpoint.merging import Held

P = TypeVar("P")


def state_digest(held: Held) -> bytes:
    """16 bytes that stand for the names, shapes, dtypes, roles and boxes of what one rank holds, in any order."""
    rows = sorted([s.name, s.role, s.dtype, list(s.shape), list(b.offsets), list(b.lengths)] for s, b in held)
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).digest()


def plan_key(digests: Sequence[bytes], parallelism: Mapping[str, int]) -> str:
    """The key of a plan: every rank's digest in the order of ranks (so also how many there are) and the parallelism.

    ByteCheckpoint's release keys a plan by names alone and "fails when the plans of partial workers change while others keep the
    same" (its own note).
    """
    hashed = hashlib.blake2b(json.dumps([len(digests), sorted(parallelism.items())]).encode(), digest_size=16)
    for digest in digests:
        hashed.update(digest)
    return hashed.hexdigest()


class PlanCache(Generic[P]):
    """The `capacity` plans that were used last."""

    def __init__(self, capacity: int = 4) -> None:
        self._capacity, self._plans = capacity, OrderedDict[str, P]()

    def __len__(self) -> int:
        return len(self._plans)

    def get(self, key: str) -> P | None:
        """The plan of this key, None if there is none."""
        if key in self._plans:
            self._plans.move_to_end(key)
        return self._plans.get(key)

    def put(self, key: str, plan: P) -> None:
        """Keep a plan; at capacity the one that was not used for longest goes."""
        self._plans[key] = plan
        self._plans.move_to_end(key)
        while len(self._plans) > self._capacity:
            self._plans.popitem(last=False)
