"""Every client trains by itself."""

from collections.abc import Callable

from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.federated.planning import first_round
from simcore.federated.rounds import Strategy
from simcore.federated.waiting import Waiting
from simcore.plan import Plan
from simcore.progress import Progress


class Params(Waiting):
    """Every client trains by itself."""


def strategy(params: Params) -> Strategy:  # noqa: ARG001 - it has none
    """As rounds are decided."""
    return Strategy(system="local_only")


def plan(
    workload: object,
    cluster: Cluster,
    cost: Costs,
    params: Params,
    *,
    evaluate: Callable[[Plan], float] | None = None,  # noqa: ARG001 - nothing is searched
    progress: Progress | None = None,  # noqa: ARG001 - seconds
) -> Plan:
    """The first round. Raises `PlanError` for another workload, or more clients than a plan holds."""
    return first_round(workload, cluster, cost, strategy(params))
