"""Where checkpoints are kept: a local folder (also one of a network file system), or whatever fsspec reaches.

A checkpoint being written has a name that begins with a dot. It gets its own name when it is complete: by a rename locally; in an
object store, which has none, by its metadata file, which is written last. `latest` names the checkpoint that was committed last.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from costmodels.files import write_atomically
from real.checkpoint.errors import CheckpointError, storage_problem
from real.checkpoint.metadata import FILE, LARGEST_B
from simcore.errors import Problem

LATEST = "latest"
NAME = re.compile(r"step-(\d{1,19})(?:\.(\d{1,9}))?")
"""Of a checkpoint: its step, and a number where the step was saved more than once."""
WRITING = re.compile(r"\.writing-[0-9a-f]{16}")
"""Of a folder in which a checkpoint is being written."""
DELETING = ".deleting-"
SPARE = ".spare"
"""Folder of files of a checkpoint that was removed, for the next save to write over."""

Write = Callable[[int, memoryview], None]
"""Put bytes at an offset of a file; of one file, offsets ascend unless `Storage.random` is true."""


class Storage(Protocol):
    """A root with checkpoints. Every error is a CheckpointError that names the file."""

    random: bool
    """Whether a file can be written in any order and by several threads."""
    block_B: int
    """Of one read: large enough that requests do not count."""

    def reserve(self, step: int, /) -> str:
        """A place for a new checkpoint, which stays invisible until it is committed. Touches nothing."""

    def begin(self, place: str) -> None:
        """Make the place; every rank may."""

    def writing(self, place: str, file: str, nbytes: int, /) -> AbstractContextManager[Write]:
        """A context in which a file of `nbytes` is written; it is durable when the context ends."""

    def commit(self, place: str, step: int, metadata: bytes, /) -> str:
        """Make the checkpoint visible under the name that is returned, then point `latest` at it."""

    def abandon(self, place: str) -> None:
        """Remove what was written of it."""

    def clean(self, keep: frozenset[str]) -> list[str]:
        """Remove leftovers of saves that never ended, except at places in `keep`; returns their names."""

    def names(self) -> list[str]:
        """Committed checkpoints, by step and by when they were saved."""

    def latest(self) -> str | None:
        """What was committed last, None if nothing was."""

    def remove(self, name: str) -> None:
        """Remove a checkpoint: first from sight, then from the disk."""

    def retire(self, name: str) -> None:
        """Remove a checkpoint from sight; the next save may write over its files."""

    def metadata(self, name: str) -> bytes:
        """The metadata file."""

    def size(self, name: str, file: str) -> int:
        """Bytes of a data file."""

    def read_into(self, name: str, file: str, offset_B: int, target: memoryview) -> None:
        """Fill `target` from a data file."""


def order(name: str) -> tuple[int, int]:
    """Step and repetition of a checkpoint's name."""
    found = NAME.fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2] or 0)


def free_name(step: int, taken: list[str]) -> str:
    """The name for one more checkpoint of this step: an old one is never written over."""
    before = [order(n)[1] for n in taken if order(n)[0] == step]
    return f"step-{step:08d}" if not before else f"step-{step:08d}.{max(before) + 1}"


@contextmanager
def explained(what: str, file: object) -> Iterator[None]:
    """An OSError within becomes a CheckpointError that names `file`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{what} failed", [storage_problem(str(file), error)]) from error


class Local:
    """A folder. Ranks on several hosts need it to be the same folder for all of them."""

    random = True
    block_B = 512 * 2**10  # fits the second-level cache, so that what is read is hashed and copied from there

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._pointed = False  # `latest` was there

    def reserve(self, _step: int) -> str:
        return f".writing-{secrets.token_hex(8)}"

    def begin(self, place: str) -> None:
        folder = self.root / place
        with explained("making a folder for the checkpoint", folder):
            self._check_mount()
            folder.mkdir(parents=True, exist_ok=True)

    def _check_mount(self) -> None:
        """Where a file system is no longer mounted, its folder is empty and on another disk: that is not filled."""
        if self._pointed and not (self.root / LATEST).is_file():
            raise FileNotFoundError(errno.ENOENT, f"`{LATEST}` was in {self.root} before and is gone")

    @contextmanager
    def writing(self, place: str, file: str, nbytes: int) -> Iterator[Write]:
        path = self.root / place / file
        with explained("writing", path):
            handle = self._spare(path)
            if handle is None:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.ftruncate(handle, nbytes)
                yield lambda offset_B, data: write_all(handle, offset_B, data)
                os.fsync(handle)
            finally:
                os.close(handle)

    def _spare(self, path: Path) -> int | None:
        """A spare file of that name, moved to `path`: its blocks (in memory: its pages) need not be found and freed again."""
        with suppress(OSError):
            (self.root / SPARE / path.name).rename(path)
            if _is_own(path.lstat()):
                return os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        path.unlink(missing_ok=True)
        return None

    def commit(self, place: str, step: int, metadata: bytes) -> str:
        folder = self.root / place
        with explained("committing", folder):
            write_atomically(folder / FILE, metadata)
            name = free_name(step, self.names())
            folder.rename(self.root / name)
            _sync_folder(self.root)
            write_atomically(self.root / LATEST, f"{name}\n")
            self._pointed = True
        return name

    def abandon(self, place: str) -> None:
        shutil.rmtree(self.root / place, ignore_errors=True)

    def clean(self, keep: frozenset[str]) -> list[str]:
        with explained("looking for leftovers", self.root):
            entries = list(self.root.iterdir()) if self.root.is_dir() else []
        found = [
            p
            for p in entries
            if p.name not in keep and (WRITING.fullmatch(p.name) or p.name.startswith((DELETING, SPARE, f".{LATEST}.")))
        ]
        for path in found:
            with explained("removing a leftover", path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        return sorted(p.name for p in found)

    def names(self) -> list[str]:
        with explained("listing checkpoints", self.root):
            entries = list(self.root.iterdir()) if self.root.is_dir() else []
        found = [p.name for p in entries if NAME.fullmatch(p.name) and (p / FILE).is_file()]
        return sorted(found, key=order)

    def latest(self) -> str | None:
        path = self.root / LATEST
        with explained("reading", path):
            if not path.is_file():
                return None
            with path.open("rb") as file:
                text = file.read(200).decode(errors="replace").strip()
        self._pointed = True
        return checked_pointer(text, str(path))

    def remove(self, name: str) -> None:
        hidden = self.root / f"{DELETING}{name}"
        with explained("removing", self.root / name):
            (self.root / name).rename(hidden)
            shutil.rmtree(hidden)

    def retire(self, name: str) -> None:
        """Who still reads it meets checksums that are wrong when the next save writes over it."""
        spare = self.root / SPARE
        with explained("removing", self.root / name):
            if spare.exists():
                shutil.rmtree(spare)
            (self.root / name).rename(spare)
            _sync_folder(self.root)  # before a byte of it changes, the name has to be gone from the disk

    def metadata(self, name: str) -> bytes:
        path = self.root / name / FILE
        with explained("reading", path):
            check_metadata_size(path.stat().st_size, str(path))
            return path.read_bytes()

    def size(self, name: str, file: str) -> int:
        path = self.root / name / file
        with explained("reading", path):
            if path.is_symlink() or not path.is_file():
                raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
            return path.stat().st_size

    def read_into(self, name: str, file: str, offset_B: int, target: memoryview) -> None:
        path = self.root / name / file
        with explained("reading", path), path.open("rb", buffering=0) as opened:
            read_all(opened.fileno(), offset_B, target, str(path))


def _is_own(found: os.stat_result) -> bool:
    """Whether a file may be written over: nothing special, and no other name leads to it (a copy made of hard links)."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def checked_pointer(text: str, where: str) -> str:
    """The name in `latest`, refused if it could lead anywhere else."""
    if not NAME.fullmatch(text):
        raise CheckpointError(
            "`latest` does not name a checkpoint", [Problem(where, repr(text[:80]), "step-N or step-N.M")]
        )
    return text


def check_metadata_size(nbytes: int, where: str) -> None:
    """Refuse to read what cannot be a metadata file."""
    if nbytes > LARGEST_B:
        raise CheckpointError(
            "a metadata file is too large", [Problem(where, f"{nbytes} bytes", f"at most {LARGEST_B}")]
        )


BLOCK_B = 16 * 2**20
"""assumption: of one call of the operating system; large enough that calls do not count."""


def write_all(handle: int, offset_B: int, data: memoryview) -> None:
    """Write at an offset of an open file, as often as the system takes only a part."""
    while len(data):
        written = os.pwrite(handle, data[:BLOCK_B], offset_B)
        offset_B, data = offset_B + written, data[written:]


def read_all(handle: int, offset_B: int, target: memoryview, where: str) -> None:
    """Fill `target` from an offset of an open file. Raises `OSError` that names `where` if the file ends before."""
    while len(target):
        got = os.preadv(handle, [target[:BLOCK_B]], offset_B)
        if not got:
            raise OSError(errno.EIO, "the file ends before the shard does", where)
        offset_B, target = offset_B + got, target[got:]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
