"""The simulator as a backend."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from simcore.checks import problems_of, shortfalls
from simcore.cluster import Cluster
from simcore.errors import Problem
from simcore.faults import FaultSpec
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.trace import Trace

if TYPE_CHECKING:
    from simcore.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class SimBackend:
    """Plays plans on a model of `cluster`; `options` are the scenario's `engine:`."""

    cluster: Cluster
    faults: Sequence[FaultSpec] = ()
    seed: int = 0
    options: dict[str, Any]
    name: str = "sim"

    @classmethod
    def from_scenario(cls, scenario: "Scenario") -> "SimBackend":
        options = scenario.engine.model_dump()
        return cls(cluster=scenario.cluster(), faults=scenario.faults(), seed=scenario.seed, options=options)

    def check(self, plan: Plan) -> list[Problem]:
        """Everything wrong with the plan on this cluster, memory included."""
        return problems_of(plan, self.cluster) or shortfalls(plan, self.cluster)

    def run(self, plan: Plan, *, progress: Progress | None = None) -> Trace:
        """The simulated trace. Raises `PlanError`, `DoesNotFit`, or `ScenarioError` for faults that name no rank or link."""
        from simcore.cost import CostModel
        from simcore.engine.simulate import simulate
        from simcore.faults import events
        from simcore.training.expected_error import iteration_error

        found = events(self.faults, self.cluster, self.seed)
        trace = simulate(plan, self.cluster, CostModel(self.cluster), faults=found, progress=progress, **self.options)
        error = iteration_error(plan, self.cluster)
        return trace if error is None else replace(trace, extra={**trace.extra, "error": {"iteration_s": error}})
