"""Transfer protocols between the controller and a model's ranks (HybridFlow, table 3): who gets which rows, whose results count.

Two arrays say it: the shard of the batch that each rank gets, and which ranks' results are concatenated, in the order of their
shards. What the paper calls distribute and collect is the same few lines for all of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simcore.errors import InputError, Problem
from simcore.hybridflow.grouping import Grouping, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Protocol:
    """`shard` (n_ranks,) in 0..`shards` - 1; `collect` (n_ranks,) bool."""

    name: str
    shard: Ints
    shards: int
    collect: NDArray[np.bool_]

    def rows(self, count: int) -> list[tuple[int, int]]:
        """First row and end of each rank's part of `count` rows. Raises `InputError` if shards would differ in size."""
        if count % self.shards:
            wanted = f"a multiple of {self.shards} ({self.name})"
            raise InputError("a batch cannot be split", [Problem("rows", str(count), wanted)])
        size = count // self.shards
        return [(i * size, (i + 1) * size) for i in self.shard.tolist()]

    def collected(self) -> list[int]:
        """Ranks whose results are concatenated, in order."""
        ranks = np.flatnonzero(self.collect)
        return ranks[np.argsort(self.shard[ranks], kind="stable")].tolist()


def one_to_all(n_ranks: int) -> Protocol:
    """Everyone gets everything and answers."""
    return _protocol("ONE_TO_ALL", np.zeros(n_ranks, dtype=np.int64), np.ones(n_ranks, dtype=bool))


def dp_proto(n_ranks: int) -> Protocol:
    """Every rank gets a part of its own and answers."""
    return _protocol("DP_PROTO", np.arange(n_ranks), np.ones(n_ranks, dtype=bool))


def three_d_proto(groups: Grouping) -> Protocol:
    """A training replica gets a part; the first tensor-parallel rank of its last stage answers."""
    return _protocol("3D_PROTO", groups.dp, (groups.pp == groups.degrees.pp - 1) & (groups.tp == 0))


def three_d_all_micro_dp(groups: Grouping) -> Protocol:
    """A generation replica gets a part; its first rank answers."""
    return _protocol("3D_ALL_MICRO_DP", groups.replica, (groups.gen_pp == 0) & (groups.gen_tp == 0))


def three_d_pp_only(groups: Grouping) -> Protocol:
    """Everyone gets everything; the first rank of each stage answers."""
    return _protocol("3D_PP_ONLY", np.zeros_like(groups.pp), (groups.tp == 0) & (groups.dp == 0))


def _protocol(name: str, shard: Ints, collect: NDArray[np.bool_]) -> Protocol:
    return Protocol(name=name, shard=shard, shards=int(shard.max()) + 1, collect=collect)
