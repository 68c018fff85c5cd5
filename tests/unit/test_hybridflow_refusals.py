"""What does not fit is refused on the command line, without a traceback, with the smallest change that would make it fit."""

import re
import signal
import sys
from pathlib import Path

import pytest

from simcore.api import plan
from simcore.cli import main
from simcore.errors import DoesNotFit

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios" / "hybridflow_7b_16.yaml"


def planned(hosts: int, *sets: str) -> int:
    """The exit code of `windtunnel plan` for four 34B models on so many hosts of eight."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    changes = ["workload.model=codellama_34b", f"cluster.nodes={hosts}", *sets]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", ["windtunnel", "plan", str(SCENARIO), *(w for c in changes for w in ("--set", c))])
        main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return int(stopped.value.code or 0)


def test_more_ranks_are_advised_where_nothing_else_helps_and_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(1) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    found = re.search(r"would make it fit: about (\d+) ranks instead of 8", said)
    assert found
    assert int(found[1]) == 24  # 16 are too few, as the next test finds
    assert planned(3) == 0


def test_offloading_is_advised_where_it_is_enough_and_then_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(2) == 2
    found = re.search(r"would make it fit: (workload\.offload): (\[[\w, ]+\])", capsys.readouterr().err)
    assert found
    assert planned(2, f"{found[1]}={found[2].replace(' ', '')}") == 0


def test_advice_is_that_of_the_deepest_pipelines() -> None:
    """70B models on 32 GPUs: 56 ranks with pipelines as deep as by default; deeper ones lack only what can be offloaded."""
    with pytest.raises(DoesNotFit, match=r"workload\.offload: \[actor, reference, reward\]"):
        plan(SCENARIO, ["workload.model=llama2_70b", "cluster.nodes=4"])
