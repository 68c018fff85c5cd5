"""From a log of calls to spans of a plan's tasks, on one rank."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from real.checkpoint.watching import Call
from simcore.checkpoint.training_states import ROLES
from simcore.plan import Plan

Span = tuple[str, float, float, int]
"""Task, start and end in seconds of the host's clock, bytes."""
CHUNK_B = 16 * 2**20
"""Hashing and writing alternate every few hundred KiB: so many bytes are shown as one span of each, in this order."""


def own_tasks(plan: Plan, rank: int) -> dict[str, str]:
    """The rank's tasks of a checkpoint by phase and role (`serialise/model`), or by phase alone where roles share it."""
    members = {name: set(group.ranks().reshape(-1).tolist()) for name, group in plan.groups.items()}
    found: dict[str, str] = {}
    for task in plan.tasks:
        group = getattr(task.op, "group", None)
        if group is not None and rank in members[group]:
            parts = task.id.split("/")
            key = "/".join(parts[:2]) if len(parts) == 3 and parts[1] in ROLES else task.id
            found.setdefault(key, task.id)
    return found


@dataclass(frozen=True, slots=True)
class Spans:
    """Makes spans of the tasks that a rank has; what it has no task for is left out."""

    tasks: Mapping[str, str]

    def saved(
        self, calls: Sequence[Call], start_s: float, laps_s: Mapping[str, float], copied_B: Mapping[str, int]
    ) -> list[Span]:
        """Of a save that began at `start_s`: `laps_s` are its seconds of plan and copy, `copied_B` bytes of each role."""
        copy_s = start_s + laps_s["plan"]
        found = [("agree", start_s, copy_s, 0), *_copies(copy_s, laps_s["copy"], copied_B)]
        after = copy_s + laps_s["copy"]
        for file in dict.fromkeys(c.file for c in calls if c.file):
            found += _file([c for c in calls if c.file == file], file.partition("-")[0])
        gathers = [c for c in calls if c.what == "gather" and c.start_s >= after]
        commit = next((c for c in calls if c.what == "commit"), None)
        if len(gathers) >= 2:
            met, last = gathers[-2:]
            found.append(("barrier/meet", met.start_s, met.end_s, met.nbytes))
            if commit is not None:
                found.append(("barrier", met.end_s, commit.start_s, 0))
                found.append(("commit", commit.start_s, commit.end_s, commit.nbytes))
                found.append(("barrier", commit.end_s, last.end_s, 0))
        return self._known(found)

    def loaded(self, calls: Sequence[Call], start_s: float, end_s: float) -> list[Span]:
        """Of a load from `start_s` to `end_s`."""
        reads = [c for c in calls if c.what == "read"]
        metadata = next(c for c in calls if c.what == "metadata")
        gathers = [c for c in calls if c.what == "gather"]
        first = min((c.start_s for c in reads), default=gathers[-1].start_s)
        found = [
            ("planning", start_s, metadata.start_s, 0),
            ("read/metadata", metadata.start_s, metadata.end_s, metadata.nbytes),
            ("planning", metadata.end_s, first, 0),
            *_reads(reads, gathers[-1].start_s),
            *self._exchanges(calls, gathers[-1].start_s),
            ("barrier/meet", gathers[-1].start_s, gathers[-1].end_s, 0),
            ("barrier", gathers[-1].end_s, end_s, 0),
        ]
        return self._known(found)

    def _exchanges(self, calls: Sequence[Call], end_s: float) -> Iterator[Span]:
        """Each exchange belongs to the role that was read before it and is exchanged at all."""
        wanted = [role for role in ROLES if f"exchange/{role}" in self.tasks]
        if not wanted:
            return
        role = wanted[0]
        for call in sorted(calls, key=lambda c: c.start_s):
            read = call.file.partition("-")[0]
            role = read if call.what == "read" and read in wanted else role
            if call.what == "exchange" and call.start_s < end_s:
                yield f"exchange/{role}", call.start_s, call.end_s, call.nbytes

    def _known(self, found: Iterable[Span]) -> list[Span]:
        return [(self.tasks[task], a, b, n) for task, a, b, n in found if task in self.tasks and b > a]


def _copies(start_s: float, seconds: float, copied_B: Mapping[str, int]) -> Iterator[Span]:
    """One lap is all that is known of the copies: it is shared out by bytes."""
    total = sum(copied_B.values())
    for role, nbytes in copied_B.items():
        end_s = start_s + seconds * nbytes / max(total, 1)
        yield f"copy/{role}", start_s, end_s, nbytes
        start_s = end_s


def _file(calls: Sequence[Call], role: str) -> Iterator[Span]:
    """Hashing and writing of one file, thread by thread, then the wait until it is durable."""
    opened = next(c for c in calls if c.what == "open")
    yield f"upload/{role}", opened.start_s, opened.end_s, 0
    writes = [c for c in calls if c.what == "write"]
    for thread in dict.fromkeys(c.thread for c in writes):
        own = [c for c in writes if c.thread == thread]
        yield from _alternating(own, opened.end_s, role)
    for sync in (c for c in calls if c.what == "sync"):
        yield f"upload/{role}", sync.start_s, sync.end_s, 0
        yield f"system/{role}", sync.start_s, sync.start_s + sync.core_s, 0


def _alternating(calls: Sequence[Call], start_s: float, role: str) -> Iterator[Span]:
    """Own work before each call and the call itself, about `CHUNK_B` at a time; of the calls, the time of the core by itself."""
    begin_s, own_s, core_s, nbytes, before_s = start_s, 0.0, 0.0, 0, start_s
    for i, call in enumerate(calls):
        own_s += call.start_s - before_s
        core_s += call.core_s
        nbytes, before_s = nbytes + call.nbytes, call.end_s
        if nbytes >= CHUNK_B or i == len(calls) - 1:
            middle_s = begin_s + own_s
            yield f"serialise/{role}", begin_s, middle_s, 0
            yield f"upload/{role}", middle_s, before_s, nbytes
            yield f"system/{role}", middle_s, min(middle_s + core_s, before_s), 0
            begin_s, own_s, core_s, nbytes = before_s, 0.0, 0.0, 0


def _reads(reads: Sequence[Call], end_s: float) -> Iterator[Span]:
    """Each read, and until the same thread's next one, or the end, the verification of what was read."""
    for thread in dict.fromkeys(c.thread for c in reads):
        own = [c for c in reads if c.thread == thread]
        for call, following in zip(own, [*(c.start_s for c in own[1:]), end_s], strict=True):
            role = call.file.partition("-")[0]
            yield f"read/{role}", call.start_s, call.end_s, call.nbytes
            yield f"deserialise/{role}", call.end_s, following, 0
