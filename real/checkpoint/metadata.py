"""The metadata file of a checkpoint: what is in it, how it becomes bytes, and what is refused when bytes are read.

Nothing is allocated for what a file merely claims: every count is compared with the size of the file first.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from real.checkpoint.errors import CorruptCheckpoint, corrupt
from simcore.checkpoint.overlaps import check_complete, check_disjoint
from simcore.checkpoint.shards import ITEM_B, Ints, RankSets, Shards, TensorSpec, check_boxes, width
from simcore.errors import InputError

MAGIC = b"WTCKPT01"
FILE = "metadata.wtc"
FIXED_B = 32
CHECKSUM_B = 8
LARGEST_B = 2**31
"""Of a metadata file: about fifteen million shards of matrices."""
LARGEST_TENSOR_B = 2**56
MOST_DIMENSIONS = 64
MOST_RANKS = 2**20
LONGEST_NAME = 4096
DEEPEST = 160
"""Of values: twice what `values.to_plain` takes, and some."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
"""Of a data file: no separators, so it cannot lead out of its checkpoint."""
COLUMNS = 4  # tensor, file, offset and checksum, before the boxes

Checksums = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of shards, its size, and the rank that wrote it."""

    name: str
    nbytes: int
    rank: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Metadata:
    """Everything about a checkpoint but its bytes. The table has n rows, one for each shard, boxes of up to d dimensions."""

    step: int
    n_ranks: int
    tensors: tuple[TensorSpec, ...]
    files: tuple[DataFile, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    parallelism: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    tensor: Ints  # (n,) position in `tensors`
    file: Ints  # (n,) position in `files`
    offset_B: Ints  # (n,) of the first byte in its file
    checksum: Checksums  # (n,) xxh3, 64 bits, of the shard's bytes
    offsets: Ints  # (n, d)
    lengths: Ints  # (n, d)

    @cached_property
    def shards(self) -> Shards:
        """The shards as a table to plan with; who held them no longer matters."""
        n = len(self.tensor)
        writers = np.array([f.rank for f in self.files], dtype=np.int64)
        return Shards(
            n_ranks=self.n_ranks,
            tensors=self.tensors,
            tensor=self.tensor,
            offsets=self.offsets,
            lengths=self.lengths,
            holders=writers[self.file] if n else self.file,
            sets=RankSets(starts=np.arange(self.n_ranks + 1), ranks=np.arange(self.n_ranks)),
        )

    def words(self, row: int) -> str:
        """A shard for people: its tensor and box."""
        box = self.shards.box(row)
        return f"{self.tensors[self.tensor[row]].name}{list(box.offsets)}+{list(box.lengths)}"


def encode(metadata: Metadata) -> bytes:
    """The bytes of the metadata file (FORMAT.md)."""
    header = {
        "step": metadata.step,
        "n_ranks": metadata.n_ranks,
        "parallelism": dict(metadata.parallelism),
        "tensors": [[t.name, t.role, t.dtype, list(t.shape)] for t in metadata.tensors],
        "aliases": dict(metadata.aliases),
        "files": [[f.name, f.nbytes, f.rank] for f in metadata.files],
        "values": metadata.values,
    }
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    n, d = metadata.offsets.shape
    fixed = MAGIC + np.array([len(text), n, d], dtype="<u8").tobytes()
    columns = (metadata.tensor, metadata.file, metadata.offset_B, metadata.checksum.view(np.int64))
    table = np.concatenate([np.reshape(c, -1) for c in (*columns, metadata.offsets.T, metadata.lengths.T)])
    body = fixed + text + table.astype("<i8").tobytes()
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(CHECKSUM_B, "little")


def decode(raw: bytes, where: str) -> Metadata:
    """The metadata in `raw`; `where` names the file in errors. Raises CorruptCheckpoint for what FORMAT.md does not have."""
    header, table = _parts(raw, where)
    n, d = table.shape[1], (table.shape[0] - COLUMNS) // 2
    try:
        parsed = json.loads(header, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise corrupt(where, "header", error, "JSON") from error
    found = _Header(parsed, where)
    metadata = Metadata(
        step=found.whole("step", 2**62),
        n_ranks=found.whole("n_ranks", MOST_RANKS, least=1),
        tensors=found.tensors(),
        files=found.files(),
        aliases=found.mapping("aliases", str),
        parallelism=found.mapping("parallelism", int),
        values=found.values(),
        tensor=table[0],
        file=table[1],
        offset_B=table[2],
        checksum=table[3].view(np.uint64),
        offsets=np.ascontiguousarray(table[COLUMNS : COLUMNS + d].T),
        lengths=np.ascontiguousarray(table[COLUMNS + d :].T),
    )
    if d != width(metadata.tensors):
        raise corrupt(where, "dimensions of the table", d, f"{width(metadata.tensors)}, the most of a tensor")
    _check_references(metadata, where)
    _check_table(metadata, n, where)
    return metadata


def _parts(raw: bytes, where: str) -> tuple[bytes, Ints]:
    """Header and table, after sizes and checksum are known to be right."""
    if len(raw) < FIXED_B + CHECKSUM_B or raw[:8] != MAGIC:
        raise corrupt(where, "first bytes", raw[:8], f"{MAGIC!r} and at least {FIXED_B + CHECKSUM_B} bytes")
    header_B, n, d = (int(x) for x in np.frombuffer(raw, dtype="<u8", count=3, offset=8))
    wanted = FIXED_B + header_B + 8 * n * (COLUMNS + 2 * d) + CHECKSUM_B
    if header_B % 8 or not 1 <= d <= MOST_DIMENSIONS or wanted != len(raw):
        given = f"{len(raw)} bytes; header {header_B} B, {n} shards, {d} dimensions"
        raise corrupt(
            where, "size", given, f"{wanted} bytes, a header of a multiple of 8, 1 to {MOST_DIMENSIONS} dimensions"
        )
    checksum = int.from_bytes(raw[-CHECKSUM_B:], "little")
    if xxhash.xxh3_64_intdigest(memoryview(raw)[:-CHECKSUM_B]) != checksum:
        raise corrupt(where, "checksum", f"{checksum:016x}", "the xxh3 of the bytes before it")
    table = np.frombuffer(raw, dtype="<i8", count=n * (COLUMNS + 2 * d), offset=FIXED_B + header_B)
    return raw[FIXED_B : FIXED_B + header_B], table.astype(np.int64).reshape(COLUMNS + 2 * d, n)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


class _Header:
    """The parsed header, field by field, each checked."""

    def __init__(self, parsed: object, where: str) -> None:
        self.where = where
        if not isinstance(parsed, dict):
            raise corrupt(where, "header", type(parsed).__name__, "an object")
        self.parsed: dict[str, Any] = parsed

    def wrong(self, field: str, given: object, allowed: str) -> CorruptCheckpoint:
        return corrupt(self.where, field, repr(given), allowed)

    def whole(self, field: str, most: int, least: int = 0) -> int:
        return self._integer(self.parsed.get(field), field, most, least)

    def _integer(self, value: object, field: str, most: int, least: int = 0) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(field, value, f"a whole number from {least} to {most}")
        return value

    def _rows(self, field: str, columns: int) -> list[list[Any]]:
        rows = self.parsed.get(field)
        if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == columns for r in rows):
            raise self.wrong(field, type(rows).__name__, f"a list of rows of {columns}")
        return rows

    def _name(self, value: object, field: str) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME:
            raise self.wrong(field, value, f"a name of up to {LONGEST_NAME} characters")
        return value

    def tensors(self) -> tuple[TensorSpec, ...]:
        found = []
        for name, role, dtype, shape in self._rows("tensors", 4):
            spec_of = f"tensor {name!r}"
            if not isinstance(dtype, str) or dtype not in ITEM_B:
                raise self.wrong(f"{spec_of} dtype", dtype, ", ".join(ITEM_B))
            if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
                raise self.wrong(f"{spec_of} shape", shape, f"a list of up to {MOST_DIMENSIONS} lengths")
            sides = tuple(self._integer(n, f"{spec_of} shape", LARGEST_TENSOR_B) for n in shape)
            if prod(max(n, 1) for n in sides) * ITEM_B[dtype] > LARGEST_TENSOR_B:
                raise self.wrong(f"{spec_of} shape", shape, f"at most {LARGEST_TENSOR_B} bytes")
            found.append(TensorSpec(self._name(name, "tensors"), sides, dtype, self._name(role, "role")))
        if len({t.name for t in found}) != len(found):
            raise self.wrong("tensors", "a name that is there twice", "different names")
        return tuple(found)

    def files(self) -> tuple[DataFile, ...]:
        found = []
        for name, nbytes, rank in self._rows("files", 3):
            if not isinstance(name, str) or not FILE_NAME.fullmatch(name) or name == FILE:
                raise self.wrong("files", name, "names of letters, digits, '_', '-' and '.' that do not begin with '.'")
            size = self._integer(nbytes, f"size of {name}", 2**62)
            found.append(
                DataFile(name, size, self._integer(rank, f"rank of {name}", self.whole("n_ranks", MOST_RANKS) - 1))
            )
        if len({f.name for f in found}) != len(found):
            raise self.wrong("files", "a name that is there twice", "different names")
        return tuple(found)

    def mapping(self, field: str, kind: type) -> dict[str, Any]:
        value = self.parsed.get(field)
        if not isinstance(value, dict) or not all(type(v) is kind for v in value.values()):
            raise self.wrong(field, value, f"an object of {kind.__name__}")
        return value

    def values(self) -> dict[str, Any]:
        value = self.parsed.get("values")
        if not isinstance(value, dict):
            raise self.wrong("values", type(value).__name__, "an object")
        level: list[Any] = [value]
        for _ in range(DEEPEST):
            level = [
                v
                for outer in level
                for v in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(v, dict | list)
            ]
        if level:
            raise self.wrong("values", f"more than {DEEPEST} levels", "less")
        return value


def _check_references(metadata: Metadata, where: str) -> None:
    """Positions are of tensors and files that there are; aliases of tensors."""
    for field_, column, count in (
        ("tensor of a shard", metadata.tensor, len(metadata.tensors)),
        ("file of a shard", metadata.file, len(metadata.files)),
    ):
        wrong = (column < 0) | (column >= count)
        if wrong.any():
            raise corrupt(where, field_, int(column[wrong][0]), f"0 to {count - 1}")
    names = {t.name for t in metadata.tensors}
    for alias, name in metadata.aliases.items():
        if name not in names or alias in names:
            raise corrupt(where, f"alias {alias}", name, "another name of a tensor")


def _check_table(metadata: Metadata, n: int, where: str) -> None:
    """Boxes make up their tensors, and byte ranges are apart and within their files."""
    try:
        check_boxes(metadata.tensors, metadata.tensor, metadata.offsets, metadata.lengths)
        check_complete(metadata.shards)
        check_disjoint(metadata.shards)
    except InputError as error:
        raise CorruptCheckpoint(f"{where} is not a sound checkpoint", error.problems) from error
    if not n:
        return
    sizes = np.array([f.nbytes for f in metadata.files], dtype=np.int64)
    nbytes = metadata.shards.nbytes
    outside = (metadata.offset_B < 0) | (metadata.offset_B > sizes[metadata.file] - nbytes)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        given = f"bytes {metadata.offset_B[row]} to {metadata.offset_B[row] + nbytes[row]}"
        file = metadata.files[metadata.file[row]]
        raise corrupt(where, f"shard {metadata.words(row)}", given, f"within {file.name} of {file.nbytes} bytes")
    order = np.lexsort((metadata.offset_B, metadata.file))
    same = np.diff(metadata.file[order]) == 0
    overlap = same & (np.diff(metadata.offset_B[order]) < nbytes[order][:-1])
    if overlap.any():
        row = int(order[np.flatnonzero(overlap)[0]])
        raise corrupt(where, f"shard {metadata.words(row)}", "bytes shared with the next shard", "bytes of its own")
