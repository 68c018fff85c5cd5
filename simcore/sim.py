"""The simulator as a backend."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from simcore.checks import problems_of, shortfalls
from simcore.cluster import Cluster
from simcore.errors import Problem
from simcore.faults import FaultSpec
from simcore.libraries import assumed
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.trace import Trace

if TYPE_CHECKING:
    from simcore.cost import CostModel
    from simcore.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class SimBackend:
    """Plays plans on a model of `cluster` at the prices of `cost`; `options` are those of `simulate`."""

    cluster: Cluster
    cost: "CostModel"
    faults: Sequence[FaultSpec] = ()
    seed: int = 0
    options: dict[str, Any]
    name: str = "sim"

    @classmethod
    def from_scenario(cls, scenario: "Scenario") -> "SimBackend":
        return cls(
            cluster=scenario.cluster(),
            cost=scenario.cost(),
            faults=scenario.faults(),
            seed=scenario.seed,
            options=scenario.engine.played,
        )

    def on(self, cluster: Cluster) -> "SimBackend":
        """The same on a cluster whose parts cost something else."""
        from simcore.cost import CostModel

        return replace(self, cluster=cluster, cost=CostModel(cluster, libraries=self.cost.libraries))

    def check(self, plan: Plan) -> list[Problem]:
        """Everything wrong with the plan on this cluster, memory included."""
        return problems_of(plan, self.cluster) or shortfalls(plan, self.cluster)

    def run(self, plan: Plan, *, progress: Progress | None = None) -> Trace:
        """The simulated trace. Raises `PlanError`, `DoesNotFit`, or `ScenarioError` for faults that name no rank or link."""
        from simcore.engine.simulate import simulate
        from simcore.faults import events
        from simcore.reporting.uncertainty import own_errors
        from simcore.training.expected_error import iteration_error

        found = events(self.faults, self.cluster, self.seed)
        trace = simulate(plan, self.cluster, self.cost, faults=found, progress=progress, **self.options)
        error = iteration_error(plan, self.cluster, own_errors(plan, trace, self.cost))
        extra = {**trace.extra, "libraries": assumed(plan, self.cluster, self.cost.libraries)}
        return replace(trace, extra=extra if error is None else {**extra, "error": {"iteration_s": error}})
