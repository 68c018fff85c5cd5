"""Ways to save and load a checkpoint, as the choices in which they differ; the phases are the same for all.

Sources: Wan et al. 2025 (ByteCheckpoint, NSDI) for its own system and what it says of its baselines, torch DCP (PyTorch 2.1 to
2.5), Megatron-LM's dist_checkpointing, Lian et al. 2024 (Universal Checkpointing).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from simcore.checkpoint.saving import LARGEST_SHARD_B
from simcore.checkpoint.writers import Balance

Name = Literal[
    "bytecheckpoint",
    "windtunnel",
    "windtunnel_sync",
    "dcp",
    "dcp_async",
    "megatron",
    "megatron_parallel",
    "ucp",
    "first_dp_group",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """`asynchronous`: training goes on once states are copied to the host. `cached_plan`: only the first save plans. `tree`: plans
    and barriers go through a tree of hosts rather than to one rank. `raw`: files hold the bytes themselves, with a checksum, rather
    than what a serialiser makes of them and dumps to shared memory; every save makes sure that no rank's state has another form
    than the kept plan. `parallel`: a file is moved as parts over several streams at once. `gathers`: shards that are no boxes
    (flat slices) are first gathered to whole tensors. `objects`: every rank sends an object for each of its shards to the
    coordinator, which compares all shards of a tensor with one another (torch up to 2.5). `reads_once`: replicas read each byte
    once together. `converts`: another parallelism first needs all files to be rewritten. `prefetches`: loaders prepare their state
    before the checkpoint. `deals`: with another number of replicas every loader takes its buffers from the old ones' files;
    otherwise one rank deals them all out (assumption; the paper says that buffers of 20 GB dominate 401 s of resharding).
    """

    title: str
    balance: Balance = "balanced"
    largest_B: int | None = LARGEST_SHARD_B
    asynchronous: bool = True
    cached_plan: bool = True
    tree: bool = True
    raw: bool = False
    parallel: bool = True
    gathers: bool = False
    objects: bool = False
    reads_once: bool = True
    converts: bool = False
    prefetches: bool = True
    deals: bool = False


DCP = System(
    title="torch DCP, synchronous",
    asynchronous=False,
    cached_plan=False,
    tree=False,
    largest_B=None,
    parallel=False,
    gathers=True,
    reads_once=False,
    prefetches=False,
)

OWN = System(title="windtunnel's own checkpoints", raw=True, deals=True)

SYSTEMS: Mapping[Name, System] = {
    "bytecheckpoint": System(title="ByteCheckpoint", largest_B=None),
    "windtunnel": OWN,
    "windtunnel_sync": replace(OWN, title="windtunnel's own checkpoints, synchronous", asynchronous=False),
    "dcp": replace(DCP, objects=True),
    "dcp_async": replace(DCP, title="torch DCP, asynchronous", asynchronous=True, objects=True),
    "megatron": replace(DCP, title="Megatron-LM, first data parallel group", balance="first_group"),
    "megatron_parallel": replace(DCP, title="Megatron-LM, fully parallel", reads_once=True),
    "ucp": replace(
        DCP, title="Universal Checkpointing (DeepSpeed)", balance="first_group", gathers=False, converts=True
    ),
    "first_dp_group": System(title="ByteCheckpoint, but the first data parallel group writes", balance="first_group"),
}
"""By the name in a scenario."""

assert set(SYSTEMS) == set(get_args(Name))
