"""The best strategies for roles that share a pool: they must fit together, and what they leave is the cache of generation.

Strategies of roles that do not generate only count by their time, what they hold and what they need for a moment, so that few
combinations of them matter. Those are joined with every strategy of the role that generates and every way to generate.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from costmodels import memory
from costmodels.generation import host_copy_s
from simcore.hybridflow.combined import Combined, thinned, undominated
from simcore.hybridflow.dataflow import Call
from simcore.hybridflow.generation_costs import Degrees, Generated, GenerationCosts
from simcore.hybridflow.model_costs import RoleCosts, Strategy
from simcore.hybridflow.resharding import Engine
from simcore.hybridflow.transition import MATRICES, broadcast_s, gather_of, reshard, start_kernels, transition_s
from simcore.hybridflow.zones import Shifted, Zone
from simcore.training.configurations import divisors
from simcore.training.quick_parts import Prices
from simcore.workloads.rlhf import Rlhf


@dataclass(frozen=True, slots=True, kw_only=True)
class Generating:
    """How the pool's role that generates does so; `cache_B` is what a rank has for keys and values."""

    role: str
    degrees: Degrees
    found: Generated
    transition_s: float
    weights_B: float
    cache_B: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChoice:
    """Strategies of the roles on `n` ranks of a zone; `seconds` by call.

    `lacking_B` is above zero where they do not fit: then it is the nearest miss.
    """

    roles: tuple[str, ...]
    zone: Zone = field(repr=False)
    n: int
    strategies: Mapping[str, Strategy]
    generating: Generating | None
    seconds: Mapping[str, float]
    lacking_B: float = 0.0

    @property
    def busy_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        return self.lacking_B <= 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A strategy of the role that generates and a way to generate, with what does not depend on who else is in the pool."""

    strategy: Strategy
    degrees: Degrees
    own_s: float
    least_s: float
    transition_s: float
    states_B: float
    working_B: float
    weights_B: float
    least_cache_B: float

    @property
    def generating_B(self) -> float:
        """What stays and the weights of generation."""
        return self.states_B + self.weights_B

    def generating(self, role: str, found: Generated, cache_B: float) -> Generating:
        return Generating(
            role=role,
            degrees=self.degrees,
            found=found,
            transition_s=self.transition_s,
            weights_B=self.weights_B,
            cache_B=cache_B,
        )


class PoolChoices:
    """Choices for sets of roles in one zone by size; what was found is kept."""

    def __init__(
        self,
        workload: Rlhf,
        zone: Zone,
        roles: Mapping[str, RoleCosts],
        generation: Mapping[str, GenerationCosts],
        cost: Prices,
        *,
        engine: Engine = "hybridflow",
        same_degrees: bool = False,
    ) -> None:
        self.workload, self.zone, self.roles, self.generation = workload, zone, roles, generation
        self.cost, self.engine, self.same_degrees = Shifted(cost, zone.first), engine, same_degrees
        self._found: dict[tuple[tuple[str, ...], int], PoolChoice | None] = {}
        self._transitions: dict[tuple[int, int, int, Degrees], float] = {}

    def choice(self, roles: tuple[str, ...], n: int) -> PoolChoice | None:
        """The fastest that fits, the nearest miss where none does, None where nothing divides."""
        key = (roles, n)
        if key not in self._found:
            self._found[key] = self._choose(roles, n)
        return self._found[key]

    @property
    def limit_B(self) -> float:
        """Of a rank, for everything but the overhead of its process."""
        overhead = memory.OVERHEAD_B if self.zone.device.kind == "gpu" else 0.0
        return self.zone.device.memory_B - overhead

    def _choose(self, roles: tuple[str, ...], n: int) -> PoolChoice | None:
        generating = [r for r in roles if self.workload.dataflow.generates(r)]
        assert len(generating) <= 1
        plain = [r for r in roles if r not in generating]
        combined = self._combined(plain, n)
        if not combined:
            return None
        if not generating:
            best = min(combined, key=self._badness)
            lacking = self._lacking(best)
            return self._made(roles, n, dict(zip(plain, best.chosen, strict=True)), None, lacking)
        return self._with_generation(roles, generating[0], plain, combined, n)

    def _lacking(self, c: Combined) -> float:
        return c.states_B + c.working_B - self.limit_B

    def _badness(self, c: Combined) -> tuple[float, float]:
        """What fits comes first, the fastest of it; then what lacks least."""
        lacking = max(self._lacking(c), 0.0)
        return lacking, c.seconds

    def _combined(self, roles: Sequence[str], n: int) -> list[Combined]:
        """Combinations that nothing beats in time and both kinds of memory."""
        found = [Combined(0.0, 0.0, 0.0, ())]
        for role in roles:
            strategies = self.roles[role].strategies(n)
            joined = [self._join(role, c, s) for c in found for s in strategies]
            found = thinned(undominated(joined))
        return found

    def _join(self, role: str, c: Combined, s: Strategy) -> Combined:
        """With one role more; a role that is offloaded holds its states only while it works."""
        away = role in self.workload.offload
        return Combined(
            c.seconds + sum(self.call_s(call, s) for call in self.workload.dataflow.calls_of(role)),
            c.states_B + (0.0 if away else s.states_B),
            max(c.working_B, s.working_B + (s.states_B if away else 0.0)),
            (*c.chosen, s),
        )

    def call_s(self, call: Call, s: Strategy) -> float:
        """Seconds of a call that does not generate, with states fetched from the host (and, trained, put back) where they wait
        there."""
        moved = 0.0
        if call.role in self.workload.offload:
            states = s.states_B if call.kind == "train" else self.roles[call.role].weights_B(s.choice)
            moved = float(host_copy_s(self.zone.device, states)) * (2 if call.kind == "train" else 1)
        if call.kind == "train":
            return call.share / self.roles[call.role].share * s.train_s + moved
        return call.share * s.forward_s + moved if call.kind == "forward" else 0.0

    def _with_generation(
        self, roles: tuple[str, ...], role: str, plain: Sequence[str], combined: Sequence[Combined], n: int
    ) -> PoolChoice | None:
        """Candidates in the order of what they take at least, until none can be better than the best."""
        costs, passes = self.generation[role], self._passes(role)
        ways = [
            self._way(role, s, degrees, n) for s in self.roles[role].strategies(n) for degrees in self._ways(role, s, n)
        ]
        candidates = sorted(
            (
                (way.own_s + passes * way.least_s + c.seconds, i, j)
                for i, way in enumerate(ways)
                for j, c in enumerate(combined)
            )
        )
        best: tuple[float, _Way, Combined, Generated, float] | None = None
        nearest: tuple[float, _Way, Combined] | None = None
        for least_s, i, j in candidates:
            way, c = ways[i], combined[j]
            if best is not None and least_s >= best[0]:
                break
            lacking, cache_B = self._room(way, c)
            found = costs.found(n, way.degrees, cache_B) if lacking <= 0 else None
            if found is None:
                if nearest is None or lacking < nearest[0]:
                    nearest = (max(lacking, 1.0), way, c)
                continue
            seconds = least_s + passes * (found.seconds - way.least_s)
            if best is None or seconds < best[0]:
                best = (seconds, way, c, found, cache_B)
        if best is not None:
            _, way, c, found, cache_B = best
            strategies = {**dict(zip(plain, c.chosen, strict=True)), role: way.strategy}
            return self._made(roles, n, strategies, way.generating(role, found, cache_B), 0.0)
        if nearest is None:
            return None
        lacking, way, c = nearest
        return self._made(roles, n, {**dict(zip(plain, c.chosen, strict=True)), role: way.strategy}, None, lacking)

    def _room(self, way: _Way, c: Combined) -> tuple[float, float]:
        """Bytes that are lacking (zero or less: none), and what generation has for its cache."""
        cache_B = self.workload.generation.memory_share * self.zone.device.memory_B - c.states_B - way.generating_B
        training = c.states_B + way.states_B + max(c.working_B, way.working_B) - self.limit_B
        return max(way.least_cache_B - cache_B, training), cache_B

    def _way(self, role: str, s: Strategy, degrees: Degrees, n: int) -> _Way:
        costs = self.generation[role]
        alone = self._join(role, Combined(0.0, 0.0, 0.0, ()), s)
        weights, moves_s = self._extra_weights_B(role, s, degrees), self.transition_s(role, s, degrees)
        return _Way(
            strategy=s,
            degrees=degrees,
            own_s=alone.seconds + moves_s,
            least_s=costs.least_s(n, degrees),
            transition_s=moves_s,
            states_B=alone.states_B,
            working_B=alone.working_B,
            weights_B=weights,
            least_cache_B=costs.token_B(degrees) * (costs.longest + 2),
        )

    def _ways(self, role: str, s: Strategy, n: int) -> Iterator[Degrees]:
        """Ways to generate: divisors of the degrees of training; those themselves where the role only generates; with `ds_chat`,
        which shards training over all ranks, any tensor parallelism of a host."""
        costs = self.generation[role]
        fixed = self.same_degrees or not self.workload.dataflow.trains(role)
        across = divisors(n, self.zone.per_node) if self.engine == "ds_chat" else divisors(s.tp, s.tp)
        for tp in [s.tp] if fixed else across:
            for pp in [s.pp] if fixed else divisors(s.pp, s.pp):
                if costs.allowed(Degrees(tp, pp)):
                    yield Degrees(tp, pp)

    def _passes(self, role: str) -> int:
        return sum(c.kind == "generate" for c in self.workload.dataflow.calls_of(role))

    def transition_s(self, role: str, s: Strategy, degrees: Degrees) -> float:
        """Seconds from training to generation; of a role that only generates, of getting its weights over the network."""
        key = (s.tp, s.pp, s.dp, degrees)
        if key not in self._transitions:
            self._transitions[key] = self._transition(role, s, degrees)
        return self._transitions[key]

    def _transition(self, role: str, s: Strategy, degrees: Degrees) -> float:
        costs = self.generation[role]
        model_B, layers = costs.weights_B(Degrees(1, 1)), costs.shape.layers
        if not self.workload.dataflow.trains(role):
            return broadcast_s(s.choice.n_ranks, model_B, layers, self.cost)
        if self.same_degrees:
            return 0.0
        matrices = layers * MATRICES if self.workload.generation.padded else 1
        gather = gather_of(reshard(self.engine, s.choice, degrees), model_B, layers, matrices)
        return transition_s(gather, start_kernels(self.workload, costs.weights_B(degrees)), self.zone, self.cost)

    def _extra_weights_B(self, role: str, s: Strategy, degrees: Degrees) -> float:
        """Weights that generation holds beside the trained ones: with `hybridflow` all but the rank's own training shard."""
        whole = self.generation[role].weights_B(degrees)
        if self.same_degrees or not self.workload.dataflow.trains(role):
            return 0.0
        if self.engine != "hybridflow" or role in self.workload.offload:
            return whole
        return max(whole - self.generation[role].weights_B(Degrees(s.tp, s.pp)), 0.0)

    def _made(
        self,
        roles: tuple[str, ...],
        n: int,
        strategies: Mapping[str, Strategy],
        generating: Generating | None,
        lacking_B: float,
    ) -> PoolChoice:
        seconds: dict[str, float] = {}
        first = True
        for call in self.workload.dataflow.calls:
            if call.role not in roles:
                continue
            if call.kind == "generate":
                found = generating.found.seconds if generating else float("inf")
                seconds[call.name] = found + (generating.transition_s if generating and first else 0.0)
                first = False
            else:
                seconds[call.name] = self.call_s(call, strategies[call.role])
        return PoolChoice(
            roles=roles,
            zone=self.zone,
            n=n,
            strategies=strategies,
            generating=generating,
            seconds=seconds,
            lacking_B=max(lacking_B, 0.0),
        )
