"""A job's checkpoint as plans need it: who writes how much, through which store, in how many parts, and what a plan of it costs."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from costmodels.kernels import kernel
from simcore.checkpoint.gathering import flat_tree, gather_tree
from simcore.checkpoint.shards import Ints
from simcore.checkpoint.systems import System
from simcore.checkpoint.training_states import (
    MODEL,
    OPTIMIZER,
    ROLES,
    Kind,
    held_B,
    kinds_of,
    loader_ranks,
    mesh_of,
    stages_of,
)
from simcore.checkpoint.writers import Writers, Written, held_items, replica_items, writers_of, written
from simcore.plan import HOST, Compute, Group
from simcore.training.choice import Choice, stage_name
from simcore.workloads.checkpointed_training import CheckpointedTraining

ALL, ROOT, LOADERS = "all", "root", "loaders"
BESIDE = "checkpoint"
MEMORY = {MODEL: "weights", OPTIMIZER: "optimizer"}
"""What plans call the memory of each role."""
SHARD_ENTRY_B = 200
"""Of a shard in the metadata: name, box, file, place and checksum (assumption: names of 50 characters, numbers as text)."""


@dataclass(frozen=True, kw_only=True)
class CheckpointJob:
    """A training job with its way to checkpoint. `per_machine` ranks share a host; `part_B` is the size of the parts that a file is
    moved in, over `streams` at a time; `flat` says how ZeRO 3 cuts (`training_states.kinds_of`); `on_host`: ranks are processors,
    whose tensors are in the memory of the host."""

    workload: CheckpointedTraining
    choice: Choice
    system: System
    store: str
    streams: int
    part_B: float
    per_machine: int
    flat: bool = True
    on_host: bool = False

    @cached_property
    def written(self) -> Written:
        """Bytes by rank."""
        return written(
            self.workload.training,
            self.choice,
            self.system.balance,
            flat=self.flat,
            largest_B=self.system.largest_B,
        )

    @property
    def resident_B(self) -> dict[str, dict[str, float]]:
        """Bytes of the states that a rank of each stage holds, by the kinds of memory of a plan."""
        found: dict[str, dict[str, float]] = {}
        for stages in stages_of(self.workload.training, self.choice):
            kept = dict.fromkeys(MEMORY.values(), 0.0)
            for kind in self.kinds:
                kept[MEMORY[kind.role]] += float(held_B(stages.tensors, kind, mesh_of(self.choice).dp).max())
            found |= {stage_name(number): dict(kept) for number in stages.numbers}
        return found

    @cached_property
    def writers(self) -> dict[str, Writers]:
        """Groups of ranks that write alike, by the names of their groups."""
        return {f"writers{i}": found for i, found in enumerate(writers_of(self.written))}

    @cached_property
    def groups(self) -> dict[str, Group]:
        """Stages, writers, loaders, the root and all ranks."""
        n = self.choice.n_ranks
        return {
            **self.choice.groups(),
            **{name: Group.listed(w.ranks.tolist()) for name, w in self.writers.items()},
            LOADERS: Group.listed(loader_ranks(self.choice).tolist()),
            ROOT: Group.listed([0]),
            ALL: Group(axes=((ALL, n, 1),)),
        }

    @property
    def copies(self) -> bool:
        """Whether a save copies states: those that are in the host's memory already, only so that training may change them."""
        return self.system.asynchronous or not (self.on_host and self.system.raw)

    @property
    def in_turn(self) -> bool:
        """Whether a rank does one thing at a time: one stream, and a rank that is itself the core that works for it."""
        return self.on_host and self.system.raw and self.parallel_streams == 1

    @property
    def beside(self) -> str:
        """The stream of what the host does while training goes on; a rank that is a core of the host shares it."""
        return BESIDE if self.on_host else HOST

    @property
    def parallel_streams(self) -> int:
        """Streams that a file is moved over."""
        return self.streams if self.system.parallel else 1

    def requests(self, nbytes: float, items: int = 1) -> int:
        """Parts that a file is moved in; of systems that have no parts, its `items`, one after the other."""
        return max(-(-int(nbytes) // int(self.part_B)), 1) if self.system.parallel else max(items, 1)

    def items(self, role: int, shards: int) -> int:
        """Tensors of a role in the files of a rank that writes `shards` in all. Who gathers flat slices to whole tensors then has
        some rows of each."""
        mine = sum(k.role == ROLES[role] for k in self.kinds)
        if self.system.gathers and any(k.spread == "flat" for k in self.kinds):
            return mine * self.most_tensors
        return -(-shards * mine // len(self.kinds))

    @cached_property
    def most_tensors(self) -> int:
        """Parameters that a rank has a part of, of the stage with most."""
        return max(len(s.tensors) for s in stages_of(self.workload.training, self.choice))

    @property
    def metadata_B(self) -> int:
        """Of the one file that says where every shard is."""
        return self.shards * SHARD_ENTRY_B

    @cached_property
    def messages(self) -> int:
        """Answers that a gathering and scattering waits for, one round of the tree after the other."""
        n = self.choice.n_ranks
        tree = gather_tree(n, per_machine=self.per_machine) if self.system.tree and n > 1 else flat_tree(n)
        return int(tree.most_children().sum())

    @cached_property
    def held_items(self) -> int:
        """Boxes that a rank holds, of the stage with most."""
        return held_items(self.workload.training, self.choice, flat=self.flat)

    @cached_property
    def shards(self) -> int:
        """Shards of the checkpoint."""
        return int(self.written.shards.sum()) * self.choice.tp

    def agreeing(self) -> Compute:
        """In each save, every rank makes sure that its state has the form that the kept plan is for."""
        return host(ALL, "agree", messages=self.messages, items=self.held_items)

    def planning(self) -> Compute:
        """The coordinator's work for a plan. ByteCheckpoint plans model and optimizer one after the other, each with its own
        messages; windtunnel plans both at once, from arrays."""
        balanced = self.system.balance == "balanced"
        items = replica_items(self.workload.training, self.choice, flat=self.flat) if balanced else 0
        if self.system.objects:
            return self._object_planning(self.pairs)
        if self.system.raw:
            return host(ALL, "plan_arrays", messages=self.messages, items=max(items, self.shards))
        return host(ROOT, "plan", messages=len(ROLES) * self.messages, items=items, states=1)

    def read_planning(self, saved: Choice, read_B: int) -> Compute:
        """Who reads what of a checkpoint that was saved under `saved`; a rank reads `read_B`, block by block."""
        if self.system.objects:
            return self._object_planning(0)
        if not self.system.raw:
            return self.planning()
        shards = replace(self, choice=saved).shards
        return host(ALL, "read_plan", messages=self.messages, items=shards + self.held_items, elements=read_B)

    def _object_planning(self, pairs: int) -> Compute:
        items = self.choice.n_ranks * self.most_tensors * len(self.kinds)
        return host(ROOT, "plan_objects", messages=self.messages, items=items, pairs=pairs, states=1)

    @cached_property
    def pairs(self) -> int:
        """Pairs of different shards of one tensor, over all tensors."""
        mesh, found = mesh_of(self.choice), 0
        for stages in stages_of(self.workload.training, self.choice):
            for kind in self.kinds:
                cuts = [
                    (1 if t.copied else mesh.tp) * (1 if kind.spread == "replicate" else mesh.dp)
                    for t in stages.tensors
                ]
                found += len(stages.numbers) * sum(c * (c - 1) // 2 for c in cuts)
        return found

    def barrier(self) -> Compute:
        """Every rank says that it is done; windtunnel's also say the checksums of their shards."""
        items = self.shards if self.system.raw else 0
        return host(ROOT, "barrier", messages=self.messages, items=items)

    def gathered_B(self, stage: int) -> int:
        """Bytes of flat slices of a rank's replicas together, which some systems gather to whole tensors before they save."""
        if not self.system.gathers or mesh_of(self.choice).dp == 1:
            return 0
        stages = next(s for s in stages_of(self.workload.training, self.choice) if stage in s.numbers)
        flat = [k for k in self.kinds if k.spread == "flat"]
        return sum(int(held_B(stages.tensors, k, mesh_of(self.choice).dp).sum()) for k in flat)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of states that are kept."""
        return kinds_of(self.workload.training, self.choice, flat=self.flat)


def host(group: str, phase: str, stream: str = HOST, **shape: int) -> Compute:
    """A phase of a checkpoint on the host of each rank of a group."""
    return Compute(group=group, kernels=(kernel(f"checkpoint/{phase}", "float32", **shape),), stream=stream)


def ranks_of_a_host(nodes: Ints) -> int:
    """Most ranks on one host, from the hosts of all ranks."""
    return int(np.unique(nodes, return_counts=True)[1].max())
