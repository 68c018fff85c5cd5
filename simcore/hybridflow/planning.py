"""From a workload and a cluster to placements, what they cost, and which is best: what all planners of RLHF share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from costmodels.generation import host_copy_s
from simcore.cluster import Cluster
from simcore.errors import DoesNotFit, PlanError, Problem
from simcore.hybridflow.generation_costs import GenerationCosts
from simcore.hybridflow.model_costs import Limits, RoleCosts
from simcore.hybridflow.placements import Placement
from simcore.hybridflow.pool_choice import PoolChoice, PoolChoices
from simcore.hybridflow.resharding import Engine
from simcore.hybridflow.search import Counts, Decision, Mode, Search
from simcore.hybridflow.timeline import Timeline, timeline
from simcore.hybridflow.zones import Zone, zones_of
from simcore.plan import Transfer
from simcore.training.quick_parts import Prices
from simcore.workloads.rlhf import Rlhf

BYTES_PER_TOKEN = 20
"""What a call hands on of a token: its number (8 bytes) and three float32 such as log-probability, value and reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a system allows.

    `engine` reshards, unless `same_degrees` generates as it trains; `limits` are those of strategies, `own_limits` those of some
    roles instead; `granularity` is that of the sizes of pools.
    """

    engine: Engine = "hybridflow"
    same_degrees: bool = False
    limits: Limits = field(default_factory=Limits)
    own_limits: Mapping[str, Limits] = field(default_factory=dict)
    granularity: str = "host"

    def limits_of(self, role: str) -> Limits:
        return self.own_limits.get(role, self.limits)


class Planning:
    """Costs of one workload on one cluster under the rules of a system."""

    def __init__(self, workload: Rlhf, cluster: Cluster, cost: Prices, rules: Rules) -> None:
        self.workload, self.cluster, self.rules = workload, cluster, rules
        self.zones: tuple[Zone, ...] = zones_of(cluster)
        self.cost = cost
        flow = workload.dataflow
        self.roles = [
            {role: RoleCosts(workload, role, cluster, zone, cost, rules.limits_of(role)) for role in flow.roles}
            for zone in self.zones
        ]
        self.generation = [
            {role: GenerationCosts(workload, role, zone) for role in flow.roles if flow.generates(role)}
            for zone in self.zones
        ]
        self.choices = [self._choices(at, workload) for at in range(len(self.zones))]

    def _choices(self, at: int, workload: Rlhf) -> PoolChoices:
        rules = self.rules
        return PoolChoices(
            workload,
            self.zones[at],
            self.roles[at],
            self.generation[at],
            self.cost,
            engine=rules.engine,
            same_degrees=rules.same_degrees,
        )

    def costs_of(self, zone: Zone, role: str) -> RoleCosts:
        """Of a role in a zone."""
        return self.roles[self.zones.index(zone)][role]

    def generation_of(self, zone: Zone, role: str) -> GenerationCosts:
        """Of the role that generates."""
        return self.generation[self.zones.index(zone)][role]

    def search(self, mode: Mode, placements: Sequence[Placement] | None = None) -> tuple[Decision, Counts]:
        """The fastest decision and what was looked at. Raises `DoesNotFit` with the smallest change that would make it fit."""
        allowed = [zone.sizes(self.rules.granularity) for zone in self.zones]
        for zone, sizes in enumerate(allowed):
            for costs in self.roles[zone].values():
                costs.prepare(sizes)
        search = Search(
            dataflow=self.workload.dataflow,
            zones=self.zones,
            allowed=allowed,
            choose=lambda zone, roles, n: self.choices[zone].choice(roles, n),
            transfer_s=self.transfer_s(),
        )
        found = search.best(mode, placements)
        if found is None:
            raise self._refusal()
        return found, search.counts

    def timeline(self, decision: Decision) -> Timeline:
        """When the calls of a decision run."""
        seconds = {name: s for pool in decision.pools for name, s in pool.seconds.items()}
        of = {role: i for i, roles in enumerate(decision.placement) for role in roles}
        return timeline(self.workload.dataflow, seconds, of, transfer_s=self.transfer_s())

    def transfer_s(self) -> float:
        """Seconds in which the batch goes from one pool to another: spread over the ranks of a host, across hosts if there are
        several."""
        n = min(z.per_node for z in self.zones)
        if self.cluster.n_ranks < 2:
            return 0.0
        share = self.workload.tokens_per_iteration * BYTES_PER_TOKEN // n
        pair = np.array([[0, self.cluster.n_ranks - 1]], dtype=np.int64)
        demand = self.cost.demands(Transfer(source="", target="", nbytes=share), pair)[0]
        return demand.latency_s + demand.volume_B / demand.cap_B_per_s

    def _refusal(self) -> PlanError | DoesNotFit:
        """All roles on all ranks of the largest zone need least of each rank: what is lacking there, and what would help."""
        at = max(range(len(self.zones)), key=lambda z: self.zones[z].size * self.zones[z].device.memory_B)
        zone, roles = self.zones[at], self.workload.dataflow.roles
        nearest = self.choices[at].choice(roles, zone.sizes(self.rules.granularity)[-1])
        if nearest is None:
            given = f"{zone.size} ranks, {', '.join(roles)}"
            advice = "Take a number of ranks that has common divisors with the models' heads and layers."
            return PlanError("no placement divides the models", [Problem("planner", given, "divisible sizes", advice)])
        held = ", ".join(f"{r} {s.states_B / 1e9:.1f} GB" for r, s in nearest.strategies.items())
        problem = Problem(
            "memory",
            f"{held} on each of {nearest.n} x {zone.device.name}, {nearest.lacking_B / 1e9:.1f} GB more than there is",
            f"{zone.device.memory_B / 1e9:.1f} GB on each device",
            f"The smallest change that would make it fit: {self._smallest_change(at, nearest)}.",
        )
        return DoesNotFit("no placement of the models fits the memory", [problem])

    def _smallest_change(self, at: int, nearest: PoolChoice) -> str:
        """States of as few roles as possible in the host's memory, those first that are not trained; otherwise more ranks."""
        zone, flow = self.zones[at], self.workload.dataflow
        order = sorted(nearest.roles, key=lambda r: (flow.trains(r), -nearest.strategies[r].states_B))
        for number in range(1, len(order)):
            offload = self.workload.offload | set(order[:number])
            found = self._choices(at, replace(self.workload, offload=offload)).choice(nearest.roles, nearest.n)
            if found is not None and found.fits:
                copies = sum(float(host_copy_s(zone.device, nearest.strategies[r].states_B)) for r in offload)
                return f"workload.offload: [{', '.join(sorted(offload))}], whose states take {copies:.1f} s to fetch"
        needed = nearest.lacking_B + self.choices[at].limit_B
        ranks = nearest.n * needed / self.choices[at].limit_B
        hosts = -(-int(np.ceil(ranks)) // zone.per_node)
        return f"about {hosts * zone.per_node} ranks instead of {nearest.n}"
