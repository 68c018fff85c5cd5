"""Writes a rank's shards: checksums while bytes are at hand, several shards at a time where the storage permits it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import xxhash

from real.checkpoint.memory import ToWrite
from real.checkpoint.metadata import DataFile
from real.checkpoint.storage import Storage, Write
from simcore.checkpoint.saving import SavePlan

CACHED_B = 256 * 2**10
"""Hashed and then written while it is still in the core's cache: writing to memory took 0.6 of the time of blocks of 16 MiB."""


def file_name(role: str, rank: int) -> str:
    """Of the shards of a role that a rank writes."""
    return f"{stem_of(role)}-{rank:06d}.bin"


def stem_of(role: str) -> str:
    """A role's name made harmless."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in role)[:60].lstrip("_") or "state"


def files_of(plan: SavePlan) -> tuple[list[DataFile], Mapping[tuple[int, int], int]]:
    """All files of a plan and the position of each (rank, role)."""
    names: dict[str, int] = {}
    files: list[DataFile] = []
    position: dict[tuple[int, int], int] = {}
    for rank, role in zip(*plan.file_B.nonzero(), strict=True):
        name = file_name(plan.roles[role], int(rank))
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name.removesuffix('.bin')}-{names[name]}.bin"
        position[int(rank), int(role)] = len(files)
        files.append(DataFile(name, int(plan.file_B[rank, role]), int(rank)))
    return files, position


def write_shards(
    storage: Storage, place: str, plan: SavePlan, rank: int, work: Sequence[ToWrite], threads: int
) -> dict[int, int]:
    """Write this rank's files at `place`; returns row -> xxh3 of its bytes. Raises CheckpointError naming file and shard."""
    files, position = files_of(plan)
    by_role: dict[int, list[ToWrite]] = {}
    for item in work:
        by_role.setdefault(int(plan.role[item.row]), []).append(item)
    checksums: dict[int, int] = {}
    for role, items in sorted(by_role.items()):
        file = files[position[rank, role]]
        items.sort(key=lambda item: int(plan.offset_B[item.row]))
        with storage.writing(place, file.name, file.nbytes) as write:
            writer = _Writer(plan, file.nbytes, write)
            checksums |= _all_of(items, writer.shard, threads if storage.random else 1)
    return checksums


@dataclass(frozen=True, slots=True)
class _Writer:
    """Puts shards into one file of `nbytes`."""

    plan: SavePlan
    nbytes: int
    write: Write

    def shard(self, item: ToWrite) -> tuple[int, int]:
        """Its row and xxh3, once it is written. Raises OSError that names it."""
        try:
            return item.row, self._hashed(item)
        except OSError as error:
            shard = self.plan.shards[item.row]
            words = f"shard {shard.tensor.name}{list(shard.box.offsets)}+{list(shard.box.lengths)}"
            raise OSError(error.errno, f"{error.strerror or error}, at {words}") from error

    def _hashed(self, item: ToWrite) -> int:
        hashed = xxhash.xxh3_64()
        data, offset_B = item.data(), int(self.plan.offset_B[item.row])
        for start in range(0, len(data), CACHED_B):
            block = data[start : start + CACHED_B]
            if item.checksum is None:
                hashed.update(block)
            gap_B = self._gap_B(offset_B + len(data)) if start + CACHED_B >= len(data) else 0
            self.write(offset_B + start, memoryview(b"".join((block, bytes(gap_B)))) if gap_B else block)
        return hashed.intdigest() if item.checksum is None else item.checksum

    def _gap_B(self, end_B: int) -> int:
        """Zeros that are due between a shard's end and the next one: a file that is written over may hold something else there."""
        return min(-end_B % self.plan.align_B, self.nbytes - end_B)


def _all_of(items: Sequence[ToWrite], work: Callable[[ToWrite], tuple[int, int]], workers: int) -> dict[int, int]:
    """What `work` returns for each; the first error ends it."""
    if workers == 1 or len(items) < 2:
        return dict(map(work, items))
    with ThreadPoolExecutor(workers, thread_name_prefix="checkpoint") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return dict(future.result() for future in futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def first_problem(error: BaseException) -> str:
    """An error that nobody foresaw, in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
