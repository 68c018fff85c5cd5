"""What a checkpoint is, whether it is whole, and how two differ, without a state to load it into. Does not load torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from real.checkpoint.errors import CheckpointError, CorruptCheckpoint, damaged
from real.checkpoint.metadata import FILE, Metadata, decode
from real.checkpoint.storage import Storage
from simcore.checkpoint.boxes import intersection
from simcore.checkpoint.shards import Shards, TensorSpec
from simcore.errors import Problem
from simcore.progress import Progress


def opened(storage: Storage, name: str) -> Metadata:
    """The metadata of a checkpoint. Raises CorruptCheckpoint."""
    return decode(storage.metadata(name), f"{name}/{FILE}")


def written_B(metadata: Metadata) -> dict[str, list[int]]:
    """For each role the bytes of shards that each rank wrote: who wrote what."""
    found: dict[str, list[int]] = {}
    ranks = np.array([f.rank for f in metadata.files], dtype=np.int64)[metadata.file]
    roles = np.array([t.role for t in metadata.tensors])[metadata.tensor]
    for role in dict.fromkeys(t.role for t in metadata.tensors):
        mine = roles == role
        by_rank = np.bincount(ranks[mine], weights=metadata.shards.nbytes[mine], minlength=metadata.n_ranks)
        found[role] = by_rank.astype(np.int64).tolist()
    return found


def wrong_files(
    storage: Storage, name: str, metadata: Metadata, files: Iterable[int] | None = None
) -> dict[int, list[Problem]]:
    """Files, by position, that are not there or not of the size that they were written with; of `files`, by default of all."""
    found: dict[int, list[Problem]] = {}
    for i in range(len(metadata.files)) if files is None else files:
        file = metadata.files[i]
        try:
            size = storage.size(name, file.name)
        except CheckpointError as error:
            found[i] = list(error.problems)
            continue
        if size != file.nbytes:
            found[i] = [Problem(f"{name}/{file.name}", f"{size} bytes", f"{file.nbytes}, as it was written")]
    return found


def check_files(storage: Storage, name: str, metadata: Metadata, files: Iterable[int] | None = None) -> None:
    """Before memory is taken for tensors: that files are as large as the metadata claims. Raises CorruptCheckpoint."""
    if wrong := wrong_files(storage, name, metadata, files):
        raise CorruptCheckpoint(f"{name} is damaged", [p for problems in wrong.values() for p in problems][:20])


def verify(storage: Storage, name: str, progress: Progress | None = None) -> list[Problem]:
    """Read every shard of a checkpoint and compare its checksum; returns what is wrong, naming file and shard."""
    metadata = opened(storage, name)
    wrong = wrong_files(storage, name, metadata)
    problems = [p for found in wrong.values() for p in found]
    done, total = 0, max(metadata.shards.total_B, 1)
    for row in np.lexsort((metadata.offset_B, metadata.file)).tolist():
        file = metadata.files[metadata.file[row]]
        if progress is not None:
            progress(done / total, file.name)
        done += int(metadata.shards.nbytes[row])
        if metadata.file[row] not in wrong:
            problems += _wrong_shard(storage, name, metadata, row)
    return problems


def _wrong_shard(storage: Storage, name: str, metadata: Metadata, row: int) -> list[Problem]:
    """What keeps a shard from being the one that was written, if anything does."""
    where = f"{name}/{metadata.files[metadata.file[row]].name}, shard {metadata.words(row)}"
    try:
        data = shard_bytes(storage, name, metadata, row)
    except CheckpointError as error:
        return [Problem(where, p.given, p.allowed, p.advice) for p in error.problems]
    found, wanted = xxhash.xxh3_64_intdigest(data), int(metadata.checksum[row])
    return [] if found == wanted else [damaged(where, found, wanted)]


def shard_bytes(storage: Storage, name: str, metadata: Metadata, row: int) -> bytearray:
    """The bytes of one shard, which a decoded metadata file has bounded."""
    data = bytearray(int(metadata.shards.nbytes[row]))
    storage.read_into(name, metadata.files[metadata.file[row]].name, int(metadata.offset_B[row]), memoryview(data))
    return data


@dataclass(frozen=True, slots=True)
class Difference:
    """How one tensor differs between two checkpoints."""

    name: str
    what: str


def diff(first: tuple[Storage, str], second: tuple[Storage, str], progress: Progress | None = None) -> list[Difference]:
    """Tensors and values that are not the same, bit by bit, however each checkpoint cuts them."""
    one, other = opened(*first), opened(*second)
    check_files(*first, one)
    check_files(*second, other)
    ours, theirs = _specs(one), _specs(other)
    found = [Difference(n, "only in the first") for n in ours if n not in theirs]
    found += [Difference(n, "only in the second") for n in theirs if n not in ours]
    both = [n for n in ours if n in theirs]
    for i, name in enumerate(both):
        if progress is not None:
            progress(i / len(both), name)
        a, b = ours[name], theirs[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            found.append(Difference(name, f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"))
        elif changed := _changed(first, one, a.name, second, other, b.name):
            found.append(Difference(name, f"{changed:,} of {a.nbytes // a.item_B:,} elements"))
    if one.step != other.step:
        found.append(Difference("step", f"{one.step} and {other.step}"))
    return found + _other_values(plain_values(one), plain_values(other))


def plain_values(metadata: Metadata) -> dict[str, Any]:
    """What is no tensor, by its path: learning rates, counters, text."""
    return dict(_leaves(dict(metadata.values), ""))


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    special = isinstance(tree, dict) and len(tree) == 1 and next(iter(tree)).startswith("$")
    if isinstance(tree, dict | list) and tree and not special:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    elif not (special and next(iter(tree)) in ("$tensor", "$array")):
        yield path, tree


def _other_values(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Difference]:
    found = [Difference(n, "only in the first") for n in ours if n not in theirs]
    found += [Difference(n, "only in the second") for n in theirs if n not in ours]
    both = [n for n in ours if n in theirs and ours[n] != theirs[n]]
    return found + [Difference(n, f"{in_short(ours[n])} and {in_short(theirs[n])}") for n in both]


def in_short(value: Any) -> str:
    """A value of a tree in a few letters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _specs(metadata: Metadata) -> dict[str, TensorSpec]:
    """Tensors by every name that they have."""
    own = {t.name: t for t in metadata.tensors}
    return {**own, **{alias: own[name] for alias, name in metadata.aliases.items()}}


def _changed(
    first: tuple[Storage, str], one: Metadata, name: str, second: tuple[Storage, str], other: Metadata, its_name: str
) -> int:
    """Elements whose bytes differ; one pair of overlapping shards is in memory at a time."""
    rows, its_rows = _rows(one, name), _rows(other, its_name)
    same_cut = [one.shards.box(r) for r in rows] == [other.shards.box(r) for r in its_rows]
    if same_cut and (one.checksum[rows] == other.checksum[its_rows]).all():
        return 0
    if not rows:
        return 0
    item_B, changed = one.tensors[one.tensor[rows[0]]].item_B, 0
    for row in rows:
        mine = np.frombuffer(shard_bytes(*first, one, row), dtype=f"V{item_B}").reshape(one.shards.box(row).lengths)
        for its_row in its_rows:
            common = _common(one.shards, row, other.shards, its_row)
            if common is None:
                continue
            its = np.frombuffer(shard_bytes(*second, other, its_row), dtype=f"V{item_B}")
            its = its.reshape(other.shards.box(its_row).lengths)
            changed += int((mine[common[0]] != its[common[1]]).sum())
    return changed


def _rows(metadata: Metadata, name: str) -> list[int]:
    position = next(i for i, t in enumerate(metadata.tensors) if t.name == name)
    rows = np.flatnonzero(metadata.tensor == position)
    return rows[np.lexsort(metadata.offsets[rows].T[::-1])].tolist() if len(rows) else []


def _common(a: Shards, i: int, b: Shards, j: int) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    one, other = a.box(i), b.box(j)
    found = intersection(one, other)
    return None if found is None else (found.within(one).slices, found.within(other).slices)
