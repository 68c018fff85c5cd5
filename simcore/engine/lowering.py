"""From a plan on classes of ranks to the player's columns: nodes, who waits for whom, and what each node needs."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcore.engine.op_table import OpTable, Placed
from simcore.plan import Plan

Ints = NDArray[np.int64]


class Rows(NamedTuple):
    """Lists of numbers of different lengths: row i is values[ptr[i] : ptr[i + 1]]."""

    ptr: Ints
    values: Ints

    @classmethod
    def of(cls, rows: "list[Ints]") -> "Rows":
        sizes = np.array([len(r) for r in rows], dtype=np.int64)
        values = np.concatenate(rows).astype(np.int64) if rows else np.empty(0, dtype=np.int64)
        return cls(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), values)

    def take(self, index: Ints) -> "tuple[Rows, Ints]":
        """The rows `index`, and the positions of their values in `self.values`."""
        sizes = self.ptr[index + 1] - self.ptr[index]
        ptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        positions = np.arange(ptr[-1]) - np.repeat(ptr[:-1] - self.ptr[index], sizes)
        return Rows(ptr, self.values[positions]), positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Nodes of one iteration. Spans are the parts of tasks that a trace shows: (node, task, class of ranks)."""

    table_row: Ints  # (nodes,) row of the op table
    successors: Rows
    span_node: Ints
    span_task: Ints
    span_class: Ints
    first_node: Ints  # (tasks + 1,)


class _Parts(NamedTuple):
    """One row for each class that takes part in a task: where it enters (`node_in`) and where it leaves (`node_out`)."""

    task: Ints
    group: Ints
    node: Ints


def lower(plan: Plan, table: OpTable, op_of: Ints) -> Program:
    """`op_of` (tasks,) is the position of each task's op in the table."""
    placed_of = table.placed_of_op[op_of]
    sizes = table.n_nodes[placed_of]
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    task_of_node = np.repeat(np.arange(len(op_of)), sizes)
    local = np.arange(first[-1]) - first[task_of_node]
    enters = _parts(table.placed, placed_of, first, leaving=False)
    leaves = _parts(table.placed, placed_of, first, leaving=True)
    sources, targets = zip(
        _stream_edges(enters, leaves, table.stream_of_op[op_of]),
        _dependency_edges(plan, table.placed, placed_of, first),
        _inner_edges(table.placed, placed_of, first),
        strict=True,
    )
    return Program(
        table_row=table.first_row[op_of][task_of_node] + local,
        successors=_compressed(np.concatenate(sources), np.concatenate(targets), int(first[-1])),
        span_node=leaves.node,
        span_task=leaves.task,
        span_class=leaves.group,
        first_node=first,
    )


def _compressed(source: Ints, target: Ints, n: int) -> Rows:
    order = np.argsort(source, kind="stable")
    ptr = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=n))]).astype(np.int64)
    return Rows(ptr, target[order])


def _parts(placed: list[Placed], placed_of: Ints, first: Ints, *, leaving: bool) -> _Parts:
    classes = Rows.of([(p.outs if leaving else p.ins)[:, 0] for p in placed])
    locals_ = Rows.of([(p.outs if leaving else p.ins)[:, 1] for p in placed])
    rows, positions = classes.take(placed_of)
    task = np.repeat(np.arange(len(placed_of)), np.diff(rows.ptr))
    return _Parts(task, rows.values, first[task] + locals_.values[positions])


def _stream_edges(enters: _Parts, leaves: _Parts, stream_of_task: Ints) -> tuple[Ints, Ints]:
    """On one class, what a stream holds next waits for what it held before.

    A class stands in at most two nodes of a task (a transfer's source and target), so four pairings cover every edge.
    """
    sequences = [_sequence(part, stream_of_task) for part in (leaves, enters)]
    keys, position = np.unique(np.concatenate([s[0] for s in sequences]), return_inverse=True)
    before = np.full((len(keys), 2), -1, dtype=np.int64)
    after = np.full((len(keys), 2), -1, dtype=np.int64)
    cut = len(sequences[0][0])
    before[position[:cut], sequences[0][2]] = sequences[0][1]
    after[position[cut:], sequences[1][2]] = sequences[1][1]
    n_tasks = len(stream_of_task)
    same = (keys[1:] // n_tasks) == (keys[:-1] // n_tasks)
    sources, targets = [], []
    for i in range(2):
        for j in range(2):
            a, b = before[:-1, i], after[1:, j]
            real = same & (a >= 0) & (b >= 0)
            sources.append(a[real])
            targets.append(b[real])
    return np.concatenate(sources), np.concatenate(targets)


def _sequence(parts: _Parts, stream_of_task: Ints) -> tuple[Ints, Ints, Ints]:
    """Key (class, stream, task) of each part, its node, and whether it is the first (0) or second (1) with that key."""
    n_tasks, n_streams = len(stream_of_task), int(stream_of_task.max(initial=0)) + 1
    key = (parts.group * n_streams + stream_of_task[parts.task]) * n_tasks + parts.task
    order = np.argsort(key, kind="stable")
    key, node = key[order], parts.node[order]
    second = np.concatenate([[0], (key[1:] == key[:-1]).astype(np.int64)])
    return key, node, second


def _dependency_edges(plan: Plan, placed: list[Placed], placed_of: Ints, first: Ints) -> tuple[Ints, Ints]:
    before, task = plan.edges
    sizes = np.array([p.n_nodes for p in placed])
    plain = (sizes[placed_of[before]] == 1) & (sizes[placed_of[task]] == 1)
    sources, targets = [first[before[plain]]], [first[task[plain]]]
    before, task = before[~plain], task[~plain]
    code = placed_of[before] * len(placed) + placed_of[task]
    for c in np.unique(code):
        template = _waits(placed[c // len(placed)], placed[c % len(placed)])
        chosen = code == c
        sources.append((first[before[chosen]][:, None] + template[:, 0]).ravel())
        targets.append((first[task[chosen]][:, None] + template[:, 1]).ravel())
    return np.concatenate(sources), np.concatenate(targets)


def _waits(before: Placed, task: Placed) -> Ints:
    """Pairs (node of `before`, node of `task`): a class waits for its own part, or for the whole where it has none."""
    own: dict[int, list[int]] = {}
    for c, node in before.outs.tolist():
        own.setdefault(c, []).append(node)
    whole = sorted({node for nodes in own.values() for node in nodes})
    pairs = {(b, node) for c, node in task.ins.tolist() for b in own.get(c, whole)}
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _inner_edges(placed: list[Placed], placed_of: Ints, first: Ints) -> tuple[Ints, Ints]:
    sources, targets = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for i, p in enumerate(placed):
        if len(p.inner):
            tasks = np.flatnonzero(placed_of == i)
            sources.append((first[tasks][:, None] + p.inner[:, 0]).ravel())
            targets.append((first[tasks][:, None] + p.inner[:, 1]).ravel())
    return np.concatenate(sources), np.concatenate(targets)
