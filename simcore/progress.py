"""Progress on stderr: a bar with an estimate on a terminal, a line now and then anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

Progress = Callable[[float, str], None]
"""Called with the share done (0 to 1) and a short phrase."""

BETWEEN_LINES_S = 5.0


@contextmanager
def shown(what: str, *, quiet: bool = False) -> Iterator[Progress]:
    """A `Progress` to hand down while the block runs. `quiet` shows nothing."""
    if quiet:
        yield lambda _share, _phrase: None
    elif sys.stderr.isatty():
        with _Bar(what) as bar:
            yield bar
    else:
        yield Lines(what, time.monotonic)


def part(progress: Progress | None, begin: float, end: float) -> Progress | None:
    """A `Progress` whose 0 to 1 is `begin` to `end` of another."""
    if progress is None:
        return None
    return lambda share, phrase: progress(begin + (end - begin) * min(max(share, 0.0), 1.0), phrase)


class _Bar:
    """rich's bar, with the time it is likely to take yet."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._what = what
        self._progress = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(what, total=1.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, share: float, phrase: str) -> None:
        self._progress.update(self._task, completed=share, description=f"{self._what}: {phrase}")


class Lines:
    """One line every few seconds, for logs; nothing for what is over before."""

    def __init__(self, what: str, clock: Callable[[], float]) -> None:
        self._what, self._clock = what, clock
        self._begin = self._last = clock()

    def __call__(self, share: float, phrase: str) -> None:
        now = self._clock()
        if now - self._last < BETWEEN_LINES_S:
            return
        self._last = now
        left = (now - self._begin) * (1 - share) / share if share > 0 else None
        estimate = "" if left is None else f", about {left:.0f} s left"
        print(f"{self._what}: {phrase}, {share:.0%}{estimate}", file=sys.stderr, flush=True)  # noqa: T201
