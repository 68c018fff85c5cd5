"""What every process that the launcher starts does first: one thread, its device, the others."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
PATIENCE = timedelta(seconds=120)  # for a peer that does not answer


@contextmanager
def joined(*, cuda: bool) -> Iterator[torch.device]:
    """This rank's device, while the process belongs to the default group: NCCL between GPUs, gloo between CPUs."""
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
        keep_freed_memory()
        _stay_on_own_core(local)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    _leave_with_parent()
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield device
        dist.barrier()
    finally:
        dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what is allocated next, as torch's allocator does on GPUs.

    By default glibc hands large blocks back to the system and gets them again, page by page, in every iteration.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; elsewhere there is none
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _stay_on_own_core(local: int) -> None:
    """Rank i of a host on its core i, if there are as many: threads that move meet on one core while another is idle."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= len(cores):
        os.sched_setaffinity(0, {cores[local]})


def _leave_with_parent() -> None:
    """End this process when the launcher is gone, even if it was killed and could not end it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
