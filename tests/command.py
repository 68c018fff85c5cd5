"""`windtunnel` in the process of the tests."""

import sys
from typing import NamedTuple

import pytest

from simcore.cli import main


class Outcome(NamedTuple):
    code: object
    out: str
    err: str


class Cli:
    """Called with the arguments of a command."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["windtunnel", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return Outcome(stopped.value.code or 0, *self._capsys.readouterr())
