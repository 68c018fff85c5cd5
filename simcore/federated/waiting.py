"""For whom a round waits: what all planners of federated training have in common."""

from pydantic import BaseModel, ConfigDict, Field

from simcore.federated.outcome import Rules
from simcore.quantity import Seconds


class Waiting(BaseModel):
    """Rules that count when several rounds are played."""

    model_config = ConfigDict(extra="forbid")

    quorum: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the chosen clients after whose answers the server goes on; 1: synchronous.",
    )
    deadline: Seconds | None = Field(None, gt=0, description="The longest that the server waits for answers.")
    peer_timeout: Seconds | None = Field(None, gt=0, description="The longest that clients wait for each other.")

    @property
    def rules(self) -> Rules:
        return Rules(quorum=self.quorum, deadline_s=self.deadline, peer_timeout_s=self.peer_timeout)
