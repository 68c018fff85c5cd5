"""When a checkpoint's storage and its ranks were at work: the same calls, with a line in a log for each.

What lies between two calls of a thread is its own work: hashing what it writes next or what it has just read.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from real.checkpoint.ranks import Buffer, Ranks
from real.checkpoint.storage import Storage, Write

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """`what` was done from `start_s` to `end_s` of this host's clock: open, write, sync, commit, metadata, read, gather or
    exchange. `core_s` of it a core was at work for the thread; of writes only."""

    what: str
    file: str
    start_s: float
    end_s: float
    nbytes: int
    thread: int
    core_s: float = 0.0


@dataclass(slots=True)
class Log:
    """Calls of all threads, in the order in which they ended."""

    calls: list[Call] = field(default_factory=list)

    def add(self, what: str, file: str, start_s: float, nbytes: int = 0, core_s: float = 0.0) -> None:
        """A call that ends now."""
        self.calls.append(Call(what, file, start_s, time.perf_counter(), nbytes, threading.get_ident(), core_s))

    def timed(self, what: str, file: str, nbytes: int, work: Callable[[], T]) -> T:
        """What `work` returns."""
        start = time.perf_counter()
        result = work()
        self.add(what, file, start, nbytes)
        return result


class WatchedStorage:
    """A storage with a log of its reads and writes; everything else is the storage's own."""

    def __init__(self, inner: Storage, log: Log) -> None:
        self._inner, self._log = inner, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def writing(self, place: str, file: str, nbytes: int) -> Iterator[Write]:
        """As the storage's own."""
        begin = time.perf_counter()
        with self._inner.writing(place, file, nbytes) as write:
            self._log.add("open", file, begin)

            def watched(offset_B: int, data: memoryview) -> None:
                start, core_s = time.perf_counter(), time.thread_time()
                write(offset_B, data)
                self._log.add("write", file, start, len(data), time.thread_time() - core_s)

            yield watched
            written, core_s = time.perf_counter(), time.thread_time()
        self._log.add("sync", file, written, core_s=time.thread_time() - core_s)

    def commit(self, place: str, step: int, metadata: bytes) -> str:
        """As the storage's own."""
        return self._log.timed("commit", "", len(metadata), lambda: self._inner.commit(place, step, metadata))

    def metadata(self, name: str) -> bytes:
        """As the storage's own."""
        return self._log.timed("metadata", "", 0, lambda: self._inner.metadata(name))

    def read_into(self, name: str, file: str, offset_B: int, target: memoryview) -> None:
        """As the storage's own."""
        self._log.timed("read", file, len(target), lambda: self._inner.read_into(name, file, offset_B, target))


class WatchedRanks:
    """Ranks with a log of what they exchange."""

    def __init__(self, inner: Ranks, log: Log) -> None:
        self._inner, self._log = inner, log
        self.rank, self.size = inner.rank, inner.size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def all_gather(self, payload: bytes) -> list[bytes]:
        """As the ranks' own."""
        return self._log.timed("gather", "", len(payload), lambda: self._inner.all_gather(payload))

    def exchange(self, sends: Mapping[int, Buffer], receives: Mapping[int, Buffer]) -> None:
        """As the ranks' own."""
        size = sum(len(buffer) for buffer in receives.values())
        self._log.timed("exchange", "", size, lambda: self._inner.exchange(sends, receives))
