"""The part of a scenario's `cluster:` that every topology of hosts shares: pools of equal nodes and the stores beside them."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_NODES = 200_000


class Pool(BaseModel):
    """Equal nodes."""

    model_config = ConfigDict(extra="forbid")

    device: str = Field(description="Catalogue name of the device of every rank.")
    nodes: int = Field(1, ge=1, le=MOST_NODES, description="Number of hosts.")
    devices_per_node: int = Field(8, ge=1, le=1024, description="Ranks on each host.")
    intra: str | None = Field(None, description="Catalogue name of the link inside a host; default: the device's own.")
    inter: str | None = Field(None, description="Catalogue name of the link of each rank to the network.")


class Hosts(BaseModel):
    """Either one pool, written flat, or several under `pools`. Ranks count through pools in order, host by host."""

    model_config = ConfigDict(extra="forbid")

    device: str | None = Field(None, description="Catalogue name of the device of every rank.")
    nodes: int = Field(1, ge=1, le=MOST_NODES, description="Number of hosts.")
    devices_per_node: int = Field(8, ge=1, le=1024, description="Ranks on each host.")
    intra: str | None = Field(None, description="Catalogue name of the link inside a host; default: the device's own.")
    inter: str | None = Field(None, description="Catalogue name of the link of each rank to the network.")
    pools: list[Pool] | None = Field(
        None, min_length=1, max_length=64, description="Different kinds of nodes, instead of the fields above."
    )
    stores: list[str] = Field(default_factory=list, max_length=16, description="Catalogue names of the stores.")

    @model_validator(mode="after")
    def _one_way_to_say_what(self) -> Self:
        if (self.device is None) == (self.pools is None):
            raise ValueError("give either `device` (with `nodes`, `devices_per_node`, ...) or `pools`")
        return self

    def all_pools(self) -> list[Pool]:
        """Pools in rank order."""
        if self.pools is not None:
            return self.pools
        assert self.device is not None
        fields = ("device", "nodes", "devices_per_node", "intra", "inter")
        return [Pool(**{f: getattr(self, f) for f in fields})]
