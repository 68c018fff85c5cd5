"""A trace: what ran when. The same format from both backends; opens in Perfetto and chrome://tracing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Ranks whose timelines are the same; `ranks` is a compact list of (first, last) intervals, both included."""

    label: str
    device: str
    ranks: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranks)


@dataclass(frozen=True, slots=True)
class Span:
    """One task's part on one lane. `nbytes` is what each rank of the lane sent, received, wrote or read."""

    task: str
    iteration: int
    lane: int
    start_s: float
    end_s: float
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Spans in columns, ordered by iteration, then start, then task position, then lane.

    task: position in the plan's tasks (n,), iteration (n,) from 0, lane (n,), start_s (n,), end_s (n,), nbytes (n,).
    Time 0 is the start of the first iteration; warm-up iterations of a real run are not part of a trace.
    A task may have several spans on one lane if it ran in pieces.
    `environment` holds device names, peak rates, versions and everything else that explains the numbers;
    `memory_B[lane][kind]` is the peak; `incomplete` lists (task, lane) that never ran, e.g. after a device died.
    """

    plan_digest: str
    backend: str
    environment: Mapping[str, Any]
    lanes: tuple[Lane, ...]
    task: NDArray[np.int64]
    iteration: NDArray[np.int64]
    lane: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    nbytes: NDArray[np.int64]
    task_ids: tuple[str, ...]
    memory_B: tuple[Mapping[str, float], ...] = ()
    incomplete: tuple[tuple[str, int], ...] = ()
    warnings: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def makespan_s(self) -> float:
        return float(self.end_s.max()) if len(self.end_s) else 0.0

    def __len__(self) -> int:
        return len(self.task)

    def spans(self) -> Iterator[Span]:
        """Spans one by one, for reading; the columns are for computing."""
        columns = (self.task, self.iteration, self.lane, self.start_s, self.end_s, self.nbytes)
        for task, *rest in zip(*(c.tolist() for c in columns), strict=True):
            yield Span(self.task_ids[task], *rest)
