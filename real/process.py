"""What every process that the launcher starts does first: one thread, its device, the others."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

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
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    _leave_with_parent()
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield device
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _leave_with_parent() -> None:
    """End this process when the launcher is gone, even if it was killed and could not end it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
