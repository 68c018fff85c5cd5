"""A plan: who does what, after what. Names, shapes, dtypes and edges; never tensors, events or durations.

Tasks are placed on *groups* of ranks, and every rank of a group does its own part of the task. The order of the tasks is the
program order: on one rank, tasks of the same stream start in this order, as on a CUDA stream.

What a part waits for (`after`): the part of the predecessor on the same rank if that rank takes part in it, otherwise all parts
of the predecessor. A collective starts when the last member of its instance has arrived; a transfer when source and target have.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from costmodels.files import write_atomically
from costmodels.kernels import Kernel
from simcore.errors import PlanError

FORMAT = 1

HOST = "host"
"""The stream of what a device's host computes, such as launching kernels: it takes time and leaves the device alone."""

CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "barrier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks on a mesh. Rank of index (i, j, ...) is offset + i * stride_i + j * stride_j + ..., or as listed in C order.

    `axes` is ((name, size, stride), ...); with `members` given, strides are ignored.
    """

    axes: tuple[tuple[str, int, int], ...]
    offset: int = 0
    members: tuple[int, ...] | None = None

    @classmethod
    def listed(cls, members: Iterable[int], axis: str = "all") -> "Group":
        """An irregular group with one axis."""
        listed = tuple(int(m) for m in members)
        return cls(axes=((axis, len(listed), 0),), members=listed)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(size for _, size, _ in self.axes)

    def __len__(self) -> int:
        return prod(self.shape)

    def ranks(self) -> NDArray[np.int64]:
        """Ranks as an array of the mesh's shape."""
        if self.members is not None:
            return np.asarray(self.members, dtype=np.int64).reshape(self.shape)
        grid = np.full(self.shape, self.offset, dtype=np.int64)
        for dim, (_, size, stride) in enumerate(self.axes):
            grid += (np.arange(size) * stride).reshape([-1 if d == dim else 1 for d in range(len(self.axes))])
        return grid

    def instances(self, along: tuple[str, ...]) -> NDArray[np.int64]:
        """Communicators along the named axes: array of shape (number of instances, members of each)."""
        names = [name for name, _, _ in self.axes]
        inner = [names.index(a) for a in along]
        outer = [d for d in range(len(names)) if d not in inner]
        grid = self.ranks().transpose(outer + inner)
        return grid.reshape(-1, prod(self.shape[d] for d in inner))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Kernels that each rank of the group runs one after the other. `awaited`: other ranks do the same meanwhile and meet it
    afterwards, so that the slowest counts."""

    group: str
    kernels: tuple[Kernel, ...]
    stream: str = "compute"
    awaited: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective in every communicator along `along`, `repeat` times in a row.

    `nbytes` is the message size as nccl-tests counts it: the buffer of a rank for all_reduce, all_to_all and broadcast, the
    whole gathered (scattered) tensor for all_gather (reduce_scatter).
    """

    kind: CollectiveKind
    group: str
    along: tuple[str, ...]
    nbytes: int
    dtype: str = "bfloat16"
    repeat: int = 1
    stream: str = "comm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Rank i of `source` sends `nbytes` to rank i of `target` (both flattened in mesh order), `repeat` times in a row."""

    source: str
    target: str
    nbytes: int
    repeat: int = 1
    stream: str = "p2p"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Each rank writes `nbytes` to a store in `requests` requests over `streams` parallel streams."""

    group: str
    store: str
    nbytes: int
    requests: int = 1
    streams: int = 1
    stream: str = "io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Each rank reads `nbytes` from a store in `requests` requests over `streams` parallel streams."""

    group: str
    store: str
    nbytes: int
    requests: int = 1
    streams: int = 1
    stream: str = "io"


Op = Compute | Collective | Transfer | Write | Read
OPS: dict[str, type[Any]] = {c.__name__.lower(): c for c in (Compute, Collective, Transfer, Write, Read)}


@dataclass(frozen=True, slots=True)
class Task:
    """An op with its place in the order. `activation_B` > 0 is taken at the start, < 0 given back at the end, on each rank."""

    id: str
    op: Op
    after: tuple[str, ...] = ()
    activation_B: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a planner decided, complete enough to be run by any backend.

    `decisions` is the planner's answer in its own words; `workload` holds what reports count with (iterations,
    tokens_per_iteration, flops_per_iteration, ...); `memory_B` is resident memory by group and kind, without activations of tasks.
    """

    name: str
    n_ranks: int
    groups: Mapping[str, Group]
    tasks: tuple[Task, ...]
    decisions: Mapping[str, Any] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    memory_B: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON; two plans with one digest are the same plan."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each task by its id."""
        return {task.id: i for i, task in enumerate(self.tasks)}

    @cached_property
    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dependencies as positions: (predecessor, task), both (edges,); -1 for a predecessor that no task has as its id."""
        position = self.index.get
        before = [position(a, -1) for task in self.tasks for a in task.after]
        counts = [len(task.after) for task in self.tasks]
        return np.array(before, dtype=np.int64), np.repeat(np.arange(len(counts)), counts)

    @cached_property
    def distinct_ops(self) -> tuple[tuple[Op, ...], NDArray[np.int64]]:
        """The op objects, each once in order of appearance, and the position of each task's op among them."""
        ids = np.array([id(task.op) for task in self.tasks], dtype=np.int64)
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty(len(first), dtype=np.int64)
        place[order] = np.arange(len(first))
        return tuple(self.tasks[i].op for i in first[order].tolist()), place[inverse.reshape(-1)]

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, equal ops written once, dependencies by position."""
        ops: dict[Op, int] = {}
        by_identity: dict[int, int] = {}  # hashing a large op costs more than writing it
        position = self.index
        rows = []
        for task in self.tasks:
            op = by_identity.get(id(task.op))
            if op is None:
                op = by_identity[id(task.op)] = ops.setdefault(task.op, len(ops))
            rows.append([task.id, op, [position[a] for a in task.after], task.activation_B])
        document = {
            "format": FORMAT,
            "name": self.name,
            "n_ranks": self.n_ranks,
            "groups": {name: _group_json(group) for name, group in self.groups.items()},
            "decisions": self.decisions,
            "workload": self.workload,
            "memory_B": self.memory_B,
            "ops": [_op_json(op) for op in ops],
            "tasks": rows,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Inverse of `to_json`; raises `PlanError` for anything that is not a plan."""
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise PlanError(f"plan format {document['format']} cannot be read; this version reads format {FORMAT}")
            ops = [_op_from_json(row) for row in document["ops"]]
            ids = [row[0] for row in document["tasks"]]
            tasks = tuple(
                Task(i, ops[op], tuple(ids[a] for a in after), act) for i, op, after, act in document["tasks"]
            )
            return cls(
                name=document["name"],
                n_ranks=document["n_ranks"],
                groups={k: _group_from_json(v) for k, v in document["groups"].items()},
                tasks=tasks,
                decisions=document["decisions"],
                workload=document["workload"],
                memory_B=document["memory_B"],
            )
        except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
            raise PlanError(f"not a windtunnel plan: {error!r}") from error

    def save(self, path: Path) -> None:
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Plan":
        return cls.from_json(path.read_text())


def _group_json(group: Group) -> dict[str, Any]:
    out: dict[str, Any] = {"axes": [list(a) for a in group.axes]}
    if group.members is None:
        out["offset"] = group.offset
    else:
        out["members"] = list(group.members)
    return out


def _group_from_json(row: dict[str, Any]) -> Group:
    members = row.get("members")
    axes = tuple((str(n), int(s), int(t)) for n, s, t in row["axes"])
    return Group(axes=axes, offset=row.get("offset", 0), members=None if members is None else tuple(members))


def _op_json(op: Op) -> dict[str, Any]:
    fields = {name: getattr(op, name) for name in op.__slots__}
    if isinstance(op, Compute):
        fields["kernels"] = [[k.name, k.dtype, dict(k.shape), k.count] for k in op.kernels]
        if op.awaited:
            del fields["awaited"]  # as documents were before there was any other
    return {"op": type(op).__name__.lower(), **fields}


def _op_from_json(row: dict[str, Any]) -> Op:
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k != "op"}
    if "kernels" in fields:
        fields["kernels"] = tuple(Kernel(n, d, tuple(sorted(s.items())), c) for n, d, s, c in fields["kernels"])
    op: Op = OPS[row["op"]](**fields)
    return op
