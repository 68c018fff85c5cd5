"""Which models share which processes, and how each is split."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from real.rlhf.job import Job
from simcore.errors import InputError, Problem
from simcore.hybridflow.grouping import Degrees


@dataclass(frozen=True, slots=True, kw_only=True)
class Portions:
    """How much of a batch a rank takes at a time: sequences of a pass that trains and of one that does not (None: as many portions
    as there are stages), and whether replicas have a shard of the model each (ZeRO 3)."""

    microbatch: int | None = None
    forward_microbatch: int | None = None
    sharded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Models that take turns on the same ranks, each split over all of them: `degrees` and `portions` by role.

    Only critics are ever sharded: an actor's weights are what is resharded for generation.
    """

    degrees: Mapping[str, Degrees]
    portions: Mapping[str, Portions] = field(default_factory=dict)

    @property
    def n_ranks(self) -> int:
        return max(d.n_ranks for d in self.degrees.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Pools have no rank in common, so what is in different pools overlaps."""

    pools: tuple[PoolSpec, ...]

    @property
    def n_ranks(self) -> int:
        return sum(pool.n_ranks for pool in self.pools)

    def check(self, job: Job) -> None:
        """Raises `InputError` with everything that keeps `job` from running like this."""
        placed = [role for pool in self.pools for role in pool.degrees]
        problems = [
            Problem(f"pools: {role}", f"placed {placed.count(role)} times", "once for each of " + ", ".join(job.roles))
            for role in dict.fromkeys((*job.roles, *placed))
            if placed.count(role) != (role in job.roles)
        ]
        for pool in self.pools:
            for role, degrees in pool.degrees.items():
                problems += _problems(role, degrees, pool.n_ranks, job)
        if problems:
            raise InputError("an RLHF job cannot be placed", problems)


def _problems(role: str, degrees: Degrees, n_ranks: int, job: Job) -> list[Problem]:
    heads, split = int(job.model["kv_heads"]), max(degrees.dp, degrees.gen_dp if role == "actor" else 1)
    layers, tied = int(job.model["layers"]), role in ("actor", "reference") and job.model.get("tied_embeddings")
    scorer = role in ("reward", "cost")
    rules = [
        ("ranks", degrees.n_ranks, degrees.n_ranks == n_ranks, f"{n_ranks}, all of its pool"),
        ("pp", degrees.pp, layers % degrees.pp == 0, f"a divisor of layers ({layers})"),
        ("pp", degrees.pp, not tied or degrees.pp == 1, "1: both ends of a pipeline would have the tied embedding"),
        ("gen_pp", degrees.gen_pp, role != "actor" or degrees.gen_pp == 1, "1: answers come from whole replicas"),
        ("tp", degrees.tp, heads % degrees.tp == 0, f"a divisor of kv_heads ({heads})"),
        ("dp", split, scorer or job.prompts % split == 0, f"parts of prompts ({job.prompts})"),
        ("dp", degrees.dp, scorer or job.minibatch % degrees.dp == 0, f"parts of a minibatch ({job.minibatch})"),
        ("dp", degrees.dp, not scorer or job.sequences % degrees.dp == 0, f"parts of sequences ({job.sequences})"),
    ]
    return [Problem(f"{role}.{name}", str(given), allowed) for name, given, holds, allowed in rules if not holds]


def together(job: Job, degrees: Degrees) -> Placement:
    """One pool; actor, critic and reference split alike, rewards computed on every rank."""
    return Placement(pools=(PoolSpec(degrees={role: _of(role, degrees) for role in job.roles}),))


def apart(job: Job, *pools: tuple[tuple[str, ...], Degrees]) -> Placement:
    """A pool for each group of roles; roles that the job does not have are left out, and pools without any."""
    kept = [(tuple(role for role in roles if role in job.roles), degrees) for roles, degrees in pools]
    return Placement(
        pools=tuple(PoolSpec(degrees={role: _of(role, degrees) for role in roles}) for roles, degrees in kept if roles)
    )


def of_plan(decisions: Mapping[str, Any], checked: Collection[str] = ()) -> Placement:
    """The placement that a plan of the planner `hybridflow` decides on: its pools, in its order. Roles that are `checked` by code
    are where the actor is."""
    pools = []
    for pool in decisions["pools"]:
        generation, degrees, portions = pool.get("generation", {}), {}, {}
        for role, strategy in pool["models"].items():
            split = strategy["parallelism"]
            of = generation if generation.get("role") == role else split
            chosen = Degrees(pp=split["pp"], tp=split["tp"], dp=split["dp"], gen_pp=of["pp"], gen_tp=of["tp"])
            degrees[role] = _of(role, chosen)
            portions[role] = Portions(
                microbatch=strategy.get("microbatch"),
                forward_microbatch=strategy.get("forward_microbatch"),
                sharded=strategy.get("zero") == 3,
            )
        if "actor" in degrees:
            degrees |= {role: _of(role, degrees["actor"]) for role in checked}
        pools.append(PoolSpec(degrees=degrees, portions=portions))
    return Placement(pools=tuple(pools))


def _of(role: str, degrees: Degrees) -> Degrees:
    """Only the actor generates; rewards have no model to split."""
    if role in ("reward", "cost"):
        return Degrees(dp=degrees.n_ranks)
    if role == "actor":
        return degrees
    return Degrees(pp=degrees.pp, tp=degrees.tp, dp=degrees.dp, gen_pp=degrees.pp, gen_tp=degrees.tp)
