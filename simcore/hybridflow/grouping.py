"""Parallel groups of an actor that trains as p-t-d and generates as p_g-t_g-d_g-d on the same ranks (HybridFlow, section 5).

Training divides the model into p pipeline stages and t tensor-parallel shards, d times. Generation needs less memory, so p_g
divides p and t_g divides t, and each training replica becomes d_g = p t / (p_g t_g) generation replicas: a micro-DP group is the
ranks of one training replica that hold the same shard in generation.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from simcore.errors import InputError, Problem

Ints = NDArray[np.int64]

Style = Literal["vanilla", "strided"]
"""`vanilla`: generation groups are neighbours, as in training (HybridFlow-V). `strided`: they are t/t_g and p/p_g apart."""

Axis = Literal["pp", "tp", "dp", "gen_pp", "gen_tp", "micro_dp"]

MEMBERSHIP: dict[Axis, tuple[Axis, ...]] = {
    "pp": ("dp", "tp"),
    "tp": ("dp", "pp"),
    "dp": ("pp", "tp"),
    "gen_pp": ("dp", "micro_dp", "gen_tp"),
    "gen_tp": ("dp", "micro_dp", "gen_pp"),
    "micro_dp": ("dp", "gen_pp", "gen_tp"),
}
"""The coordinates that members of a group along an axis have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """Training p-t-d as `pp`, `tp`, `dp`; generation p_g-t_g as `gen_pp`, `gen_tp`.

    Raises `InputError` if a degree is below 1 or a degree of generation does not divide that of training.
    """

    pp: int = 1
    tp: int = 1
    dp: int = 1
    gen_pp: int = 1
    gen_tp: int = 1

    def __post_init__(self) -> None:
        problems = [
            Problem(name, str(value), "at least 1")
            for name in ("pp", "tp", "dp", "gen_pp", "gen_tp")
            if (value := getattr(self, name)) < 1
        ]
        if not problems:
            problems = [
                Problem(name, str(given), f"a divisor of {whole} ({of})", "Each training shard lies in one of generation.")
                for name, given, whole, of in (("gen_pp", self.gen_pp, "pp", self.pp), ("gen_tp", self.gen_tp, "tp", self.tp))
                if of % given
            ]  # fmt: skip
        if problems:
            raise InputError("an actor cannot train and generate like this", problems)

    @property
    def n_ranks(self) -> int:
        return self.pp * self.tp * self.dp

    @property
    def micro_dp(self) -> int:
        """d_g: generation replicas of each training replica."""
        return self.pp * self.tp // (self.gen_pp * self.gen_tp)

    @property
    def gen_dp(self) -> int:
        """d_g d: generation replicas in all."""
        return self.micro_dp * self.dp


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouping:
    """Coordinates of every rank, each an array (n_ranks,). In training tp is the fastest axis and pp the slowest."""

    degrees: Degrees
    style: Style
    pp: Ints = field(repr=False)
    tp: Ints = field(repr=False)
    dp: Ints = field(repr=False)
    gen_pp: Ints = field(repr=False)
    gen_tp: Ints = field(repr=False)
    micro_dp: Ints = field(repr=False)

    @property
    def replica(self) -> Ints:
        """(n_ranks,) generation replica of each rank, 0 to `gen_dp` - 1; those of one training replica are neighbours."""
        return self.dp * self.degrees.micro_dp + self.micro_dp

    def groups(self, axis: Axis) -> Ints:
        """(groups, size) ranks of every group along `axis`, each in the order of its coordinate."""
        return self._grouped(MEMBERSHIP[axis], (axis,))

    def model_groups(self) -> Ints:
        """(dp, p t) ranks that hold one training replica between them, stage by stage."""
        return self._grouped(("dp",), ("pp", "tp"))

    def generation_groups(self) -> Ints:
        """(d_g d, p_g t_g) ranks that hold one generation replica between them, stage by stage."""
        return self._grouped(("dp", "micro_dp"), ("gen_pp", "gen_tp"))

    def _grouped(self, common: tuple[Axis, ...], inner: tuple[Axis, ...]) -> Ints:
        order = np.lexsort([getattr(self, name) for name in reversed((*common, *inner))])
        size = int(np.prod([getattr(self.degrees, name) for name in inner]))
        return order.reshape(-1, size)


def grouping(degrees: Degrees, style: Style = "strided") -> Grouping:
    """The groups of `degrees`. Raises `InputError` on another style.

    Strided, with a = t/t_g and b = p/p_g: gen_tp = tp // a, gen_pp = pp // b, micro_dp = (pp mod b) a + tp mod a. So a rank's
    training shard lies in its generation shard. Vanilla counts the ranks of a training replica, tp fastest, and gives
    generation groups to neighbours.
    """
    if style not in get_args(Style):
        raise InputError("an actor cannot be grouped", [Problem("style", repr(style), ", ".join(get_args(Style)))])
    pp, dp, tp = np.unravel_index(np.arange(degrees.n_ranks), (degrees.pp, degrees.dp, degrees.tp))
    if style == "strided":
        a, b = degrees.tp // degrees.gen_tp, degrees.pp // degrees.gen_pp
        gen_tp, gen_pp, micro_dp = tp // a, pp // b, (pp % b) * a + tp % a
    else:
        shape = (degrees.micro_dp, degrees.gen_pp, degrees.gen_tp)
        micro_dp, gen_pp, gen_tp = np.unravel_index(pp * degrees.tp + tp, shape)
    return Grouping(degrees=degrees, style=style, pp=pp, tp=tp, dp=dp, gen_pp=gen_pp, gen_tp=gen_tp, micro_dp=micro_dp)
