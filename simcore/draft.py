"""A plan's tasks while they are being listed."""

from collections.abc import Iterable

from simcore.plan import Op, Task


class Draft:
    """Tasks in program order. `add` returns the new task's id, for those that wait for it."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def add(self, name: str, op: Op, after: Iterable[str | None] = (), activation_B: float = 0.0) -> str:
        """None among `after` is nothing to wait for; a task named twice is waited for once."""
        waits = tuple(dict.fromkeys(a for a in after if a is not None))
        self.tasks.append(Task(name, op, waits, round(activation_B)))
        return name
