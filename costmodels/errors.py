"""Every error a user can meet starts here: a summary and all the problems found, none of them a traceback."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where, what was given, what is allowed, and what to do."""

    field: str
    given: str
    allowed: str
    advice: str = ""

    def __str__(self) -> str:
        text = f"{self.field}: given {self.given}; allowed: {self.allowed}"
        return f"{text}. {self.advice}" if self.advice else text


class WindtunnelError(ValueError):
    """Base of everything that is the input's fault and not ours."""

    def __init__(self, summary: str, problems: Sequence[Problem] = ()) -> None:
        self.summary = summary
        self.problems = tuple(problems)
        super().__init__("\n".join([summary, *(f"  - {p}" for p in self.problems)]))


class InputError(WindtunnelError):
    """A file, an option or a field is wrong."""


class DataError(InputError):
    """A table of measurements or a catalogue entry is wrong."""
