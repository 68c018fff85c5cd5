"""FedMoE-DA: clients share an embedding network through a server and mix experts whose gates are alike.

Zhan et al., arXiv 2411.02115. Experts go from client to client, the server sees embedding networks and gates. `relays` and `price`
are extensions of ours that take bandwidth into account: the same experts from whoever can send them soonest, or other experts that
are a little less alike and come sooner.
"""

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
    """FedMoE-DA."""

    P: int = Field(5, ge=0, le=10_000, description="Experts that each expert asks for, besides itself.")
    tau: float = Field(1.0, gt=0, le=1e6, description="Temperature of the softmax over cosines.")
    every: int = Field(
        1, ge=1, description="Rounds after which the aggregation matrix is computed anew (I in the paper)."
    )
    average_gates: bool = Field(False, description="Gates go through the server too, instead of staying personal.")
    relays: bool = Field(False, description="Who has fetched an expert may hand it on: same experts, cheaper peers.")
    price: float = Field(0.0, ge=0, description="Cosine given up to wait a second less for a peer's uplink; 0: none.")


def strategy(params: Params) -> Strategy:
    """As rounds are decided."""
    return Strategy(
        system="fedmoe_da",
        P=params.P,
        tau=params.tau,
        every=params.every,
        average_gates=params.average_gates,
        relays=params.relays,
        price=params.price,
    )


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
