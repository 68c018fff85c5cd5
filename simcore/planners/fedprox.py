"""Federated averaging that pulls clients, while they train, towards the server's model (Li et al. 2020); bytes as in fedavg."""

from collections.abc import Callable

from pydantic import Field

from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.federated.planning import first_round
from simcore.federated.rounds import Strategy
from simcore.federated.waiting import Waiting
from simcore.plan import Plan
from simcore.progress import Progress


class Params(Waiting):
    """Federated averaging that pulls clients, while they train, towards the server's model (Li et al. 2020); bytes as in fedavg."""

    proximal: float = Field(0.01, ge=0, description="Weight of half the squared distance to the server's model.")


def strategy(params: Params) -> Strategy:
    """As rounds are decided."""
    return Strategy(system="fedprox", proximal=params.proximal)


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
