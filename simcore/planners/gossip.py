"""Pairs of clients, drawn in each round, average their models; there is no server."""

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
    """Pairs of clients, drawn in each round, average their models; there is no server."""

    neighbours: int = Field(1, ge=1, le=1000, description="Partners that each client is drawn with in a round.")
    share: float = Field(1.0, gt=0, le=1, description="Part of the model that each sends.")


def strategy(params: Params) -> Strategy:
    """As rounds are decided."""
    return Strategy(system="gossip", neighbours=params.neighbours, share=params.share)


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
