"""The real backend: the same plan on the devices of this machine.

Who runs a workload is found by its name: `rlhf` is run by `real/workloads/rlhf.py`, a file with `lacking(plan)`, what keeps the
plan from running here, and `run(plan, cluster, progress=...)`, the measured trace.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from simcore.checks import problems_of, shortfalls
from simcore.cluster import Cluster
from simcore.errors import CannotRun, Problem
from simcore.plan import Plan
from simcore.progress import Progress
from simcore.trace import Trace

if TYPE_CHECKING:
    from simcore.scenario import Scenario

WORKLOADS = Path(__file__).parent / "workloads"


@dataclass(frozen=True, slots=True, kw_only=True)
class RealBackend:
    """Runs plans of the workloads that have a file in `real/workloads`."""

    cluster: Cluster
    name: str = "real"

    @classmethod
    def from_scenario(cls, scenario: "Scenario") -> "RealBackend":
        return cls(cluster=scenario.cluster())

    def check(self, plan: Plan) -> list[Problem]:
        """What stands in the way here, and what would have to change."""
        return [*problems_of(plan, self.cluster), *shortfalls(plan, self.cluster), *_lacking(plan)]

    def run(self, plan: Plan, *, progress: Progress | None = None) -> Trace:
        """The measured trace. Raises `CannotRun` for what `check` finds, or with what a worker said before it failed."""
        found = self.check(plan)
        if found:
            raise CannotRun(f"plan {plan.name!r} cannot run here", found)
        runs = cast(Callable[..., Trace], _runner(str(plan.workload["name"]), "run"))
        return runs(plan, self.cluster, progress=progress)


def runnable() -> tuple[str, ...]:
    """Names of the workloads that run for real."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(WORKLOADS)])))


def _runner(workload: str, function: str) -> object:
    return getattr(import_module(f"real.workloads.{workload}"), function)


def _lacking(plan: Plan) -> list[Problem]:
    name = plan.workload.get("name")
    if name not in runnable():
        advice = "Nothing else runs for real yet."
        return [Problem("workload.name", repr(name), ", ".join(runnable()), advice)]
    return cast(Callable[[Plan], list[Problem]], _runner(str(name), "lacking"))(plan)
