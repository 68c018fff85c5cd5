"""Settings that have to stand before anything is imported, and what tests of several folders use."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.order import dealt

if TYPE_CHECKING:
    from tests.command import Cli

HERE = Path(__file__).parent

# Triton reads it when it is imported. On a GPU: TRITON_INTERPRET=0 make test
os.environ.setdefault("TRITON_INTERPRET", "1")
# Tests run side by side, and what they compute is small: threads of one would wait for cores that others have.
os.environ.setdefault("OMP_NUM_THREADS", "1")


LONG = {
    "examples/test_notebooks.py": 130.0,
    "examples/test_readme.py": 120.0,
    "real/test_federated_flower.py": 110.0,
    "real/test_calibrate.py": 115.0,
    "real/test_rlhf_placements.py": 200.0,
    "examples/test_scenarios.py": 60.0,
    "unit/test_hybridflow_rows.py": 55.0,
    "real/test_kernels_compile.py": 45.0,
    "real/test_checkpoint_backend.py": 40.0,
    "real/test_checkpoint_faults.py": 40.0,
    "real/test_rlhf_backend.py": 30.0,
    "laws/test_scenario_fuzz.py": 28.0,
    "real/test_federated_kernels.py": 25.0,
    "real/test_checkpoint_s3.py": 20.0,
    "real/test_backend.py": 20.0,
    "real/test_precision_backend.py": 20.0,
    "unit/test_cli.py": 20.0,
}
"""About how many seconds the longest files of tests take; only the order in which workers take them depends on it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers, each begins with its share of what takes longest."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        named = [(item.path.relative_to(HERE).as_posix(), item) for item in items]
        items[:] = dealt(named, LONG, workers)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator["Cli"]:
    """`windtunnel` in this process."""
    from tests.command import Cli

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Cli(monkeypatch, capsys)
    for number, handler in handlers.items():
        signal.signal(number, handler)
