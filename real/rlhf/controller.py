"""The single controller: pools of processes, models on them, and batches of which it holds references only.

A call returns at once with references to what will be computed. Calls of models in one pool run one after the other, in the order
in which they are made; those of different pools as soon as what they read is there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError
from torch import Tensor

from real.rlhf.job import Job
from real.rlhf.placement import Portions
from real.rlhf.protocols import Protocol
from real.rlhf.worker import Piece, Worker, last_words
from simcore.errors import CannotRun, Problem
from simcore.hybridflow.grouping import Degrees

DEFAULT = Portions()
GRACE_S = 5.0
"""assumption: other ranks notice within this that one of them has failed; the first cause is then told from its consequences."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Columns of a batch of `count` rows that are somewhere else, each in pieces."""

    count: int
    columns: Mapping[str, tuple[Piece, ...]]

    def __or__(self, other: "Remote") -> "Remote":
        assert self.count == other.count
        return Remote(self.count, {**self.columns, **other.columns})

    def renamed(self, **names: str) -> "Remote":
        """Column `new` from `old`: `renamed(new="old")`, and no other."""
        return Remote(self.count, {new: self.columns[old] for new, old in names.items()})

    def rows(self, first: int, end: int) -> "Remote":
        """Some of the rows."""
        return Remote(end - first, {name: _cut(pieces, first, end) for name, pieces in self.columns.items()})


def put(columns: Mapping[str, Tensor]) -> Remote:
    """A batch that begins at the controller, such as prompts."""
    ref, count = ray.put(dict(columns)), len(next(iter(columns.values())))
    return Remote(count, {name: (Piece(ref, name, 0, count),) for name in columns})


@dataclass(frozen=True, slots=True)
class Call:
    """Something that a rank of a pool does or has done."""

    pool: "Pool"
    rank: int
    ref: Any

    def error(self) -> RayError | None:
        """What came of it instead of a result."""
        try:
            ray.get(self.ref)
        except RayError as error:
            return error
        return None


@dataclass(slots=True, eq=False)
class Pool:
    """Processes of one group; a rank each."""

    name: str
    size: int
    folder: Path
    cores: Sequence[int] = ()
    """A core for each rank; none where there are too few."""
    workers: list[Any] = field(init=False)
    pending: list[Call] = field(init=False, default_factory=list)
    """Calls whose end nobody has waited for."""

    def __post_init__(self) -> None:
        gpus = 1 if torch.cuda.is_available() else 0
        made = ray.remote(Worker).options(num_cpus=0 if gpus else 1, num_gpus=gpus)
        self.workers = [
            made.remote(rank, self.size, str(self.log(rank)), self.cores[rank] if self.cores else None)
            for rank in range(self.size)
        ]

    def join(self) -> None:
        """Make a process group of the pool."""
        (host, port), *_ = wait([Call(self, 0, self.workers[0].meet.remote())])
        wait([Call(self, rank, worker.join.remote(host, port)) for rank, worker in enumerate(self.workers)])

    def start(self, calls: Iterable[Any]) -> None:
        """Keep a reference for each rank to wait for later."""
        self.pending += [Call(self, rank, ref) for rank, ref in enumerate(calls)]

    def log(self, rank: int) -> Path:
        """What a rank writes goes here."""
        return self.folder / f"{self.name}.{rank}.log"

    def kill(self) -> None:
        """End the processes."""
        for worker in self.workers:
            ray.kill(worker)


def finish(pools: Iterable[Pool]) -> None:
    """Wait for every call that was started. Raises `CannotRun` as `wait` does."""
    calls = []
    for pool in pools:
        calls += pool.pending
        pool.pending = []
    wait(calls)


def wait(calls: Sequence[Call]) -> list[Any]:
    """What they return. Raises `CannotRun` with the rank that failed and its log."""
    try:
        return ray.get([call.ref for call in calls])  # type: ignore[no-any-return]
    except RayError as error:
        raise CannotRun("a process failed", [_cause(calls, error)]) from error


def _cause(calls: Sequence[Call], error: RayError) -> Problem:
    """The first failure that is no consequence: a process that ended, or else an exception that no other call raised."""
    done, _ = ray.wait([call.ref for call in calls], num_returns=len(calls), timeout=GRACE_S)
    failed = [(call, found) for call in calls if call.ref in done and (found := call.error()) is not None]
    gone = [pair for pair in failed if isinstance(pair[1], RayActorError)]
    own = [pair for pair in failed if not isinstance(getattr(pair[1], "cause", None), RayError)]
    call, first = (gone or own or failed or [(calls[0], error)])[0]
    kind = "ended" if gone else str(first).strip().splitlines()[-1]
    said = last_words(call.pool.log(call.rank))
    where = f"{call.pool.name}, rank {call.rank}"
    return Problem(where, kind, "a run without errors", f"It last wrote: {said}" if said else "")


@dataclass(frozen=True, slots=True)
class Model:
    """A role on a pool."""

    role: str
    pool: Pool
    degrees: Degrees
    portions: Portions = DEFAULT

    def build(self, job: Job) -> None:
        """Make the ranks' parts."""
        self.pool.start(
            worker.build.remote(self.role, job, self.degrees, self.portions) for worker in self.pool.workers
        )

    def call(
        self,
        method: str,
        protocol: Protocol,
        batch: Remote,
        takes: Iterable[str],
        gives: Iterable[str],
        named: str = "",
        **constants: Any,
    ) -> Remote:
        """Start `method` on every rank with its rows of the columns `takes`; the columns `gives` of those that count.

        `named` is what a plan calls this, by default the method.
        """
        columns = list(takes)
        parts, refs = protocol.rows(batch.count), []
        for worker, (first, end) in zip(self.pool.workers, parts, strict=True):
            rows = batch.rows(first, end).columns
            wanted = {name: list(rows[name]) for name in columns}
            refs.append(worker.run.remote(self.role, method, wanted, constants, named or method))
        self.pool.start(refs)
        counted = [(refs[rank], parts[rank][1] - parts[rank][0]) for rank in protocol.collected()]
        total, made = sum(size for _, size in counted), f"{named or method}@{self.pool.name}"
        return Remote(total, {name: tuple(Piece(ref, name, 0, size, made) for ref, size in counted) for name in gives})

    def ask(self, method: str, **constants: Any) -> list[Any]:
        """What `method` returns on each rank, for numbers about a run; not for batches."""
        calls = [
            Call(self.pool, rank, worker.run.remote(self.role, method, {}, constants))
            for rank, worker in enumerate(self.pool.workers)
        ]
        return wait(calls)


def fetch(remote: Remote, name: str) -> Tensor:
    """A column at the controller; for numbers of a sequence, such as its reward."""
    pieces = remote.columns[name]
    found = ray.get([piece.ref for piece in pieces])
    return torch.cat([columns[p.column][p.first : p.end] for columns, p in zip(found, pieces, strict=True)])


def _cut(pieces: Iterable[Piece], first: int, end: int) -> tuple[Piece, ...]:
    """Pieces of rows `first` to `end`."""
    found, start = [], 0
    for piece in pieces:
        stop = start + piece.end - piece.first
        low, high = max(first, start), min(end, stop)
        if low < high:
            found.append(replace(piece, first=piece.first + low - start, end=piece.first + high - start))
        start = stop
    return tuple(found)
