"""Ranks as forked processes over gloo: what has to be a process to be killed, or to have torch's own meshes."""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

FORK = multiprocessing.get_context("fork")
PATIENCE = timedelta(seconds=300)


def forked(work: Callable[[], object]) -> Any:
    """A process that runs `work` and exits with 0, with 1 and a traceback for an error."""

    def run() -> None:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    process = FORK.Process(target=run)
    process.start()
    return process


def world(size: int, work: Callable[[int], object]) -> list[Any]:
    """`work(rank)` in `size` processes that have torch.distributed over gloo; the processes, running."""
    store = Path(tempfile.mkdtemp()) / "store"

    def joined(rank: int) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=PATIENCE)
        work(rank)
        dist.destroy_process_group()

    return [forked(lambda rank=rank: joined(rank)) for rank in range(size)]


def ended(processes: Sequence[Any]) -> list[int]:
    """Exit codes, -9 for one that was killed."""
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]
