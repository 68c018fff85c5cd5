"""What ran when, on one rank.

Computing is one piece at a time: `switch` ends what computes and begins the next task, a blocking collective interrupts it. On a
GPU the pieces are CUDA events on the current stream, read after the run; on a CPU the monotonic clock.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

SHORTEST_S = 2e-6  # a piece that is over before that is the seam between two others


@dataclass(slots=True)
class Recorder:
    """Pieces as (task, iteration, start, end, nbytes), times in seconds of the clock."""

    cuda: bool = False
    iteration: int = -1
    pieces: list[tuple[str, int, float, float, int]] = field(default_factory=list)
    _events: list[tuple[str, int, "torch.cuda.Event", "torch.cuda.Event", int]] = field(default_factory=list)
    _task: str | None = None
    _since: "float | torch.cuda.Event" = 0.0

    def now(self) -> "float | torch.cuda.Event":
        """A point in time."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(
        self, task: str, start: "float | torch.cuda.Event", end: "float | torch.cuda.Event", nbytes: int = 0
    ) -> None:
        if self.iteration < 0:
            return
        if isinstance(start, float) and isinstance(end, float):
            if end - start >= SHORTEST_S:
                self.pieces.append((task, self.iteration, start, end, nbytes))
        else:
            assert not isinstance(start, float) and not isinstance(end, float)
            self._events.append((task, self.iteration, start, end, nbytes))

    def switch(self, task: str | None) -> None:
        """From now on `task` computes; None: nothing does."""
        now = self.now()
        if self._task is not None:
            self.add(self._task, self._since, now)
        self._task, self._since = task, now

    @contextmanager
    def blocking(self, task: str, nbytes: int) -> Iterator[None]:
        """A collective that what computes waits for."""
        computing = self._task
        self.switch(None)
        start = self.now()
        yield
        self.add(task, start, self.now(), nbytes)
        self.switch(computing)

    def resolve(self, origin: "torch.cuda.Event", origin_s: float) -> None:
        """Turn CUDA events into seconds of the clock; `origin` was recorded at `origin_s`."""
        torch.cuda.synchronize()
        for task, iteration, start, end, nbytes in self._events:
            a, b = (origin_s + origin.elapsed_time(e) * 1e-3 for e in (start, end))
            self.pieces.append((task, iteration, a, b, nbytes))
        self._events.clear()
