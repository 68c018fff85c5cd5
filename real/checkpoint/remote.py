"""Checkpoints in whatever fsspec reaches: memory, S3 and its relatives, HDFS.

Object stores do not rename. So a checkpoint is written under its own name and stays invisible until its metadata file, the last
one, is there; stores make an object visible whole, and whoever lists afterwards sees it. `latest` is put after that. What is
removed loses its metadata file first, so a removal that is cut short leaves nothing that looks like a checkpoint.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import fsspec

from real.checkpoint.errors import CheckpointError
from real.checkpoint.metadata import FILE
from real.checkpoint.storage import (
    LATEST,
    NAME,
    Write,
    check_metadata_size,
    checked_pointer,
    explained,
    free_name,
    order,
)
from simcore.errors import InputError, Problem, WindtunnelError

logger = logging.getLogger(__name__)

WITHOUT_FOLDERS = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"))
"""Stores whose folders are only names. Making one there could make a bucket that was misspelt."""
NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST}
"""Of errors that a store's client raises without a number."""


class Remote:
    """A root given by its address, such as s3://bucket/run or memory://run; one job at a time writes under it.

    `options` go to the file system of fsspec: `endpoint_url`, `key` and `secret` of S3, say. Without them S3 reads its usual
    environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...) and files.
    """

    random = False
    block_B = 16 * 2**20

    def __init__(self, address: str, **options: Any) -> None:
        try:
            self.fs, self.root = fsspec.core.url_to_fs(address, **options)
        except (ValueError, ImportError) as error:
            advice = "Install what fsspec names (S3: pip install 'windtunnel[s3]'), or use a local path."
            raise InputError(
                "no such store", [Problem("path", address, "an address that fsspec knows", f"{error}. {advice}")]
            ) from error
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        self._has_folders = WITHOUT_FOLDERS.isdisjoint(protocols)
        self._committed: set[str] = set()

    def _path(self, *parts: str) -> str:
        return "/".join((self.root.rstrip("/"), *parts))

    def reserve(self, step: int) -> str:
        return free_name(step, [n for n in self._folders() if NAME.fullmatch(n)])

    def begin(self, place: str) -> None:
        if self._has_folders:
            with _told("making a folder for the checkpoint", self._path(place)):
                self.fs.makedirs(self._path(place), exist_ok=True)

    @contextmanager
    def writing(self, place: str, file: str, _nbytes: int) -> Iterator[Write]:
        path = self._path(place, file)
        with explained("writing", path):
            with _as_os_errors():
                opened = self.fs.open(path, "wb")
            try:
                yield _appending(opened)
                with _as_os_errors():
                    opened.close()
            except BaseException:
                _discard(opened)
                raise

    def commit(self, place: str, _step: int, metadata: bytes) -> str:
        with _told("committing", self._path(place, FILE)):
            self.fs.pipe_file(self._path(place, FILE), metadata)
        with _told("committing", self._path(LATEST)):
            self.fs.pipe_file(self._path(LATEST), f"{place}\n".encode())
        self._committed.add(place)
        return place

    def abandon(self, place: str) -> None:
        """Never raises: the error that led here is the one to report, and what stays is a leftover to the next save."""
        if place in self._committed:
            return
        try:
            self._remove(place)
        except Exception as error:
            logger.warning("what was written at %s could not be removed: %s", self._path(place), error)

    def clean(self, keep: frozenset[str]) -> list[str]:
        found = [n for n in self._folders() if NAME.fullmatch(n) and n not in keep and not self._is_there(n, FILE)]
        for name in found:
            with _told("removing a leftover", self._path(name)):
                self._remove(name)
        return sorted(found)

    def _folders(self) -> list[str]:
        with _told("listing checkpoints", self.root):
            self.fs.invalidate_cache()
            try:
                entries = self.fs.ls(self.root, detail=False)
            except FileNotFoundError:
                return []
        return [str(p).rstrip("/").rsplit("/", 1)[-1] for p in entries]

    def _is_there(self, *parts: str) -> bool:
        """Unlike fsspec's own `exists`, which takes every error for a no, and so a checkpoint for a leftover."""
        path = self._path(*parts)
        with _told("looking for", path):
            try:
                self.fs.info(path)
            except FileNotFoundError:
                return False
        return True

    def _remove(self, name: str) -> None:
        """Its metadata file before everything else."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name, FILE))
        with suppress(FileNotFoundError):
            self.fs.rm(self._path(name), recursive=True)

    def names(self) -> list[str]:
        found = [n for n in self._folders() if NAME.fullmatch(n) and self._is_there(n, FILE)]
        return sorted(found, key=order)

    def latest(self) -> str | None:
        path = self._path(LATEST)
        if not self._is_there(LATEST):
            return None
        with _told("reading", path):
            raw = self.fs.cat_file(path, start=0, end=200)
        return checked_pointer(raw.decode(errors="replace").strip(), path)

    def remove(self, name: str) -> None:
        with _told("removing", self._path(name)):
            self._remove(name)

    def retire(self, name: str) -> None:
        self.remove(name)  # objects cannot be written over in part

    def metadata(self, name: str) -> bytes:
        path = self._path(name, FILE)
        with _told("reading", path):
            check_metadata_size(int(self.fs.size(path)), path)
            return bytes(self.fs.cat_file(path))

    def size(self, name: str, file: str) -> int:
        with _told("reading", self._path(name, file)):
            return int(self.fs.size(self._path(name, file)))

    def read_into(self, name: str, file: str, offset_B: int, target: memoryview) -> None:
        path = self._path(name, file)
        with _told("reading", path):
            data = self.fs.cat_file(path, start=offset_B, end=offset_B + len(target))
        if len(data) != len(target):
            problem = Problem(path, f"{len(data)} bytes at {offset_B}", f"{len(target)}")
            raise CheckpointError("the file ends before the shard does", [problem])
        target[:] = data


@contextmanager
def _told(what: str, file: str) -> Iterator[None]:
    """Whatever a store's client raises becomes a CheckpointError that names `file`."""
    with explained(what, file), _as_os_errors():
        yield


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Clients have kinds of errors of their own, of connections above all."""
    try:
        yield
    except WindtunnelError:
        raise
    except OSError as error:
        if error.errno is not None or type(error) not in NUMBERS:
            raise
        raise OSError(NUMBERS[type(error)], str(error)) from error
    except Exception as error:
        raise OSError(None, f"{type(error).__name__}: {error}") from error


def _appending(opened: Any) -> Write:
    """Writes at ascending offsets, with zeros between them."""
    position = 0

    def write(offset_B: int, data: memoryview) -> None:
        nonlocal position
        assert offset_B >= position
        with _as_os_errors():
            opened.write(bytes(offset_B - position))
            opened.write(data)
        position = offset_B + len(data)

    return write


def _discard(opened: Any) -> None:
    """Close a file whose content is not to appear; a store that is gone cannot be told, which the first error says already."""
    with suppress(Exception):
        opened.discard()
    with suppress(AttributeError):  # of a file in memory, which has nothing to send
        opened.closed = True
