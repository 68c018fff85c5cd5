"""What each process of a run does: join the others, run the plan's iterations, leave its spans and losses in a file."""

import json
import os
import resource
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from costmodels.files import write_atomically
from real.recorder import Recorder
from real.training import Trainer, mesh_of
from simcore.plan import Plan

WARM_UP = 3  # iterations before the first that counts
PATIENCE = timedelta(seconds=120)  # for a peer that does not answer


def work(plan_path: str, folder: str) -> None:
    """Entry point under torch's elastic launcher. Writes `rank<r>.json` into `folder`."""
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        plan = Plan.load(Path(plan_path))
        recorder = Recorder(cuda=cuda)
        before = _resident_B()
        trainer = Trainer(plan, mesh_of(plan, device), recorder)
        losses, bounds = _run(trainer, recorder, int(plan.workload["iterations"]))
        peak = torch.cuda.max_memory_allocated() if cuda else _peak_resident_B() - before
        result = {"pieces": recorder.pieces, "losses": losses, "bounds": bounds, "peak_B": peak}
        write_atomically(Path(folder) / f"rank{rank}.json", json.dumps(result))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _resident_B() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak_resident_B() -> int:
    """The most memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run(trainer: Trainer, recorder: Recorder, iterations: int) -> tuple[list[float], list[tuple[float, float]]]:
    """Losses, warm-up included, and (start, end) of the iterations that count, in seconds of this host's clock."""
    losses: list[float] = []
    bounds: list[tuple[float, float]] = []
    for i in range(-WARM_UP, iterations):
        recorder.iteration = -1
        dist.barrier()
        recorder.iteration = i
        origin, start = recorder.now(), time.perf_counter()
        losses.append(trainer.iteration())
        if recorder.cuda:
            assert not isinstance(origin, float)
            recorder.resolve(origin, start)
        if i >= 0:
            bounds.append((start, time.perf_counter()))
    return losses, bounds
