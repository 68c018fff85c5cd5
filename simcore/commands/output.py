"""Results go to stdout: tables for people, JSON for programs."""

import json
import sys
from typing import Any

from rich.console import Console, RenderableType


def show(view: RenderableType) -> None:
    """Print to the terminal, or as plain text of a fixed width where stdout is none."""
    if sys.stdout.isatty():
        Console().print(view)
        return
    from simcore.reporting.text import as_text

    sys.stdout.write(as_text(view))


def show_json(data: Any) -> None:
    """Print as JSON; NaN has no place in it."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def note(text: str) -> None:
    """A line on stderr, for what is not the result."""
    sys.stderr.write(text + "\n")


def records(frame: Any) -> list[dict[str, Any]]:
    """The rows of a pandas frame as plain data, missing values as null."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows
