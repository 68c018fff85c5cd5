"""Processes under torch's elastic launcher: one for each rank, all of them gone when the call returns, whatever ends it."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from simcore.errors import CannotRun, Problem
from simcore.progress import Progress

PROGRESS_FILE = "progress"
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def launch(
    module: str, processes: int, folder: Path, *, arguments: Sequence[str] = (), progress: Progress | None = None
) -> None:
    """Run `python -m module folder *arguments` in `processes` processes and wait for all of them.

    They find each other through the environment variables that the launcher sets, and tell how far they are by `tell`. Raises
    `CannotRun` with the last words of the first that failed; the launcher has ended the others by then.
    """
    (folder / "logs").mkdir()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        run_id="windtunnel",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs"), redirects=Std.ALL),
    )
    try:
        with _watched(folder / PROGRESS_FILE, progress), _own_signals(), _silenced():
            elastic_launch(config, sys.executable)("-m", module, str(folder), *arguments)
    except ChildFailedError as error:
        raise CannotRun("a worker failed", [_last_words(error, folder)]) from error
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from stopped


def tell(folder: Path, share: float, phrase: str) -> None:
    """Called by a process: `share` of its work is done, and what comes next."""
    (folder / PROGRESS_FILE).write_text(f"{share:.4f} {phrase}")


@contextmanager
def _watched(path: Path, progress: Progress | None) -> Iterator[None]:
    """Hand what processes tell on to `progress` while the launcher waits."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        seen = ""
        while not done.wait(0.2):
            said = path.read_text() if path.is_file() else ""
            share, _, phrase = said.partition(" ")
            if said != seen and phrase:
                progress(float(share), phrase)
            seen = said

    watcher = threading.Thread(target=watch, name="progress")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextmanager
def _own_signals() -> Iterator[None]:
    """The launcher handles signals while it runs; afterwards they mean what they meant before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _silenced() -> Iterator[None]:
    """The launcher logs a worker's failure with tracebacks of its own; the error that is raised says it once."""
    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _last_words(error: ChildFailedError, folder: Path) -> Problem:
    """What the first process that failed had to say: its exception, or else the end of its stderr."""
    rank, failure = error.get_first_failure()
    message = failure.message if isinstance(failure.message, str) else str(failure.message.get("message", ""))
    told = failure.error_file_data and message
    said = message if told else "\n".join(_stderr(folder, failure)) or _exit(failure)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    advice = "It may have run out of memory: try a smaller model or microbatch." if failure.exitcode == -9 else ""
    return Problem(f"rank {rank}", " ".join(lines[-3:]), "a run without errors", advice)


def _stderr(folder: Path, failure: ProcessFailure) -> list[str]:
    logs = sorted((folder / "logs").rglob(f"{failure.local_rank}/stderr.log"))
    return [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]


def _exit(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"ended by {signal.Signals(-failure.exitcode).name}"
    return f"exit code {failure.exitcode}"
