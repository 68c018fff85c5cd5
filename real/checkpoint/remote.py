"""Checkpoints in whatever fsspec reaches: memory, S3 and its relatives, HDFS.

Object stores do not rename. So a checkpoint is written under its own name and stays invisible until its metadata file, the last
one, is there; stores make an object visible whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
from simcore.errors import InputError, Problem


class Remote:
    """A root given by its address, such as s3://bucket/run or memory://run."""

    random = False

    def __init__(self, address: str) -> None:
        try:
            self.fs, self.root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError) as error:
            advice = "Install the package that fsspec names, or use a local path."
            raise InputError(
                "no such store", [Problem("path", address, "an address that fsspec knows", f"{error}. {advice}")]
            ) from error

    def _path(self, *parts: str) -> str:
        return "/".join((self.root.rstrip("/"), *parts))

    def reserve(self, step: int) -> str:
        return free_name(step, [n for n in self._folders() if NAME.fullmatch(n)])

    def begin(self, place: str) -> None:
        with explained("making a folder for the checkpoint", self._path(place)):
            self.fs.makedirs(self._path(place), exist_ok=True)

    @contextmanager
    def writing(self, place: str, file: str, _nbytes: int) -> Iterator[Write]:
        path = self._path(place, file)
        with explained("writing", path), self.fs.open(path, "wb") as opened:
            position = 0

            def write(offset_B: int, data: memoryview) -> None:
                nonlocal position
                assert offset_B >= position
                opened.write(bytes(offset_B - position))
                opened.write(data)
                position = offset_B + len(data)

            yield write

    def commit(self, place: str, _step: int, metadata: bytes) -> str:
        with explained("committing", self._path(place)):
            self.fs.pipe_file(self._path(place, FILE), metadata)
            self.fs.pipe_file(self._path(LATEST), f"{place}\n".encode())
        return place

    def abandon(self, place: str) -> None:
        if self.fs.exists(self._path(place)):
            self.fs.rm(self._path(place), recursive=True)

    def clean(self, keep: frozenset[str]) -> list[str]:
        found = []
        with explained("removing leftovers", self.root):
            for name in self._folders():
                if NAME.fullmatch(name) and name not in keep and not self.fs.exists(self._path(name, FILE)):
                    self.fs.rm(self._path(name), recursive=True)
                    found.append(name)
        return sorted(found)

    def _folders(self) -> list[str]:
        with explained("listing checkpoints", self.root):
            self.fs.invalidate_cache()
            if not self.fs.exists(self.root):
                return []
            return [str(p).rstrip("/").rsplit("/", 1)[-1] for p in self.fs.ls(self.root, detail=False)]

    def names(self) -> list[str]:
        found = [n for n in self._folders() if NAME.fullmatch(n) and self.fs.exists(self._path(n, FILE))]
        return sorted(found, key=order)

    def latest(self) -> str | None:
        path = self._path(LATEST)
        with explained("reading", path):
            if not self.fs.exists(path):
                return None
            return checked_pointer(self.fs.cat_file(path, 0, 200).decode(errors="replace").strip(), path)

    def remove(self, name: str) -> None:
        with explained("removing", self._path(name)):
            self.fs.rm_file(self._path(name, FILE))
            self.fs.rm(self._path(name), recursive=True)

    def metadata(self, name: str) -> bytes:
        path = self._path(name, FILE)
        with explained("reading", path):
            check_metadata_size(int(self.fs.size(path)), path)
            return bytes(self.fs.cat_file(path))

    def size(self, name: str, file: str) -> int:
        with explained("reading", self._path(name, file)):
            return int(self.fs.size(self._path(name, file)))

    def read_into(self, name: str, file: str, offset_B: int, target: memoryview) -> None:
        path = self._path(name, file)
        with explained("reading", path):
            data = self.fs.cat_file(path, offset_B, offset_B + len(target))
        if len(data) != len(target):
            problem = Problem(path, f"{len(data)} bytes at {offset_B}", f"{len(target)}")
            raise CheckpointError("the file ends before the shard does", [problem])
        target[:] = data
