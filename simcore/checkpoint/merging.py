"""From what each rank says it holds to one table of distinct shards, where replicas have been found."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simcore.checkpoint.boxes import Box
from simcore.checkpoint.shards import Ints, RankSets, Shards, TensorSpec, box_columns, check_boxes, width
from simcore.errors import InputError, Problem

Held = Sequence[tuple[TensorSpec, Box]]
"""What one rank holds."""


def merge_ranks(states: Sequence[Held], tensors: Sequence[TensorSpec] = ()) -> Shards:
    """One table of what all ranks hold; `states[r]` is rank r's. `tensors` come first in it, whether anybody holds them or not.

    Raises InputError where ranks disagree about a tensor's shape, dtype or role, or a box is outside its tensor.
    """
    tensors = _agreed(states, tensors)
    position = {spec.name: i for i, spec in enumerate(tensors)}
    rows = [(rank, position[spec.name], box) for rank, held in enumerate(states) for spec, box in held if box.size]
    offsets, lengths = box_columns([box for _, _, box in rows], width(tensors))
    return merge(
        n_ranks=len(states),
        tensors=tensors,
        rank=np.array([r for r, _, _ in rows], dtype=np.int64),
        tensor=np.array([t for _, t, _ in rows], dtype=np.int64),
        offsets=offsets,
        lengths=lengths,
    )


def _agreed(states: Sequence[Held], tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    found = {spec.name: spec for spec in tensors}
    first: dict[str, int] = {}
    problems = []
    for rank, held in enumerate(states):
        for spec, _ in held:
            known = found.setdefault(spec.name, spec)
            first.setdefault(spec.name, rank)
            if known != spec:
                field = f"{spec.name} on rank {rank}"
                allowed = f"what rank {first[spec.name]} says: {_words(known)}"
                problems.append(Problem(field, _words(spec), allowed))
    if problems:
        raise InputError("ranks disagree about tensors", problems[:10])
    return tuple(found.values())


def _words(spec: TensorSpec) -> str:
    return f"{spec.role} {spec.dtype} of shape {spec.shape}"


def merge(
    *, n_ranks: int, tensors: Sequence[TensorSpec], rank: Ints, tensor: Ints, offsets: Ints, lengths: Ints
) -> Shards:
    """The same from columns: row i says that `rank[i]` holds a box; a rank that says so twice is counted once."""
    check_boxes(tensors, tensor, offsets, lengths)
    columns = [tensor, *offsets.T, *lengths.T]
    order = _sorted(columns, rank)
    new_shard = _changes([c[order] for c in columns])
    again = ~new_shard & ~_changes([rank[order]])
    order, new_shard = order[~again], new_shard[~again]
    starts = np.append(np.flatnonzero(new_shard), len(order))
    first = order[starts[:-1]]
    holders, sets = _distinct_sets(starts, rank[order])
    return Shards(
        n_ranks=n_ranks,
        tensors=tuple(tensors),
        tensor=tensor[first],
        offsets=offsets[first],
        lengths=lengths[first],
        holders=holders,
        sets=sets,
    )


def _hash(columns: Sequence[Ints]) -> NDArray[np.uint64]:
    """A 64-bit number for each row (the finaliser of splitmix64 after each column)."""
    mixed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64) + np.uint64(1)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
    return mixed


def _sorted(columns: Sequence[Ints], rank: Ints) -> Ints:
    """An order in which rows that are equal are beside each other, ranks ascending among them.

    By hash, which is several times faster than by every column; by the columns themselves should two hashes collide.
    """
    mixed = _hash(columns)
    order = np.argsort(mixed, kind="stable") if _ascending(rank) else np.lexsort((rank, mixed))
    same_hash = ~_changes([mixed[order].view(np.int64)])
    if (same_hash & _changes([c[order] for c in columns])).any():
        return np.lexsort((rank, *reversed(columns)))
    return order


def _ascending(values: Ints) -> bool:
    return bool((values[1:] >= values[:-1]).all())


def _changes(columns: Sequence[Ints]) -> NDArray[np.bool_]:
    """Where a row differs from the one before it; the first row does."""
    changed = np.zeros(len(columns[0]), dtype=np.bool_)
    changed[:1] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return changed


def _distinct_sets(starts: Ints, ranks: Ints) -> tuple[Ints, RankSets]:
    """Which set each run of `ranks` is, and the sets without repetition."""
    number: dict[bytes, int] = {}
    holders = np.zeros(len(starts) - 1, dtype=np.int64)
    sizes = np.diff(starts)
    alone = sizes == 1
    holders[alone] = ranks[starts[:-1][alone]]  # provisional: the set {r} is number r
    single = np.unique(holders[alone])
    holders[alone] = np.searchsorted(single, holders[alone])
    found: list[Ints] = []
    for i in np.flatnonzero(~alone).tolist():
        members = ranks[starts[i] : starts[i + 1]]
        key = members.tobytes()
        if key not in number:
            number[key] = len(single) + len(found)
            found.append(members)
        holders[i] = number[key]
    lengths = [np.ones(len(single), dtype=np.int64), np.array([len(m) for m in found], dtype=np.int64)]
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(lengths))])
    return holders, RankSets(starts=ends, ranks=np.concatenate([single, *found]).astype(np.int64))
