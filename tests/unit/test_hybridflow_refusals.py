"""What does not fit is refused on the command line, without a traceback, with the smallest change that would make it fit."""

import re
import signal
import sys
from pathlib import Path

import pytest

from simcore.cli import main

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios" / "hybridflow_7b_16.yaml"


def planned(hosts: int, *sets: str) -> int:
    """The exit code of `windtunnel plan` for four 70B models on so many hosts of eight."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    changes = ["workload.model=llama2_70b", f"cluster.nodes={hosts}", *sets]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", ["windtunnel", "plan", str(SCENARIO), *(w for c in changes for w in ("--set", c))])
        main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return int(stopped.value.code or 0)


def test_more_ranks_are_advised_where_nothing_else_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(2) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    found = re.search(r"would make it fit: about (\d+) ranks instead of 16", said)
    assert found
    assert int(found[1]) == 40  # as the next two tests show: 32 are too few


def test_offloading_is_advised_where_it_is_enough_and_then_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where only deeper pipelines than by default come near enough."""
    assert planned(4) == 2
    found = re.search(r"would make it fit: (workload\.offload): (\[[\w, ]+\])", capsys.readouterr().err)
    assert found
    assert planned(4, f"{found[1]}={found[2].replace(' ', '')}") == 0


@pytest.mark.slow
def test_as_many_ranks_as_were_advised_are_enough() -> None:
    assert planned(5) == 0
