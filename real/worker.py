"""What each process of a run does: join the others, run the plan's iterations, leave its spans and losses in a file.

Started by the backend as `python -m real.worker FOLDER`: FOLDER holds plan.json and takes rank0.json, rank1.json, ...
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from real.launch import tell
from real.load import Clock
from real.process import joined
from real.recorder import Recorder
from real.training import Trainer, mesh_of
from simcore.plan import Plan

PLAN, RESULT = "plan.json", "rank{rank}.json"
WARM_UP = 3  # iterations before the first that counts


@record
def main() -> None:
    """Run the plan of the folder."""
    folder = Path(sys.argv[1])
    with joined(cuda=torch.cuda.is_available()) as device:
        rank = dist.get_rank()

        def report(share: float, phrase: str) -> None:
            if rank == 0:
                tell(folder, share, phrase)

        result = _train(Plan.load(folder / PLAN), device, report)
        write_atomically(folder / RESULT.format(rank=rank), json.dumps(result))


def _train(plan: Plan, device: torch.device, report: Callable[[float, str], None]) -> dict[str, Any]:
    """Pieces of every task, losses with those of the warm-up, bounds of the iterations in seconds of this host's clock."""
    cuda = device.type == "cuda"
    recorder, before = Recorder(cuda=cuda), _peak_resident_B()
    trainer = Trainer(plan, mesh_of(plan, device), recorder)
    iterations = int(plan.workload["iterations"])
    losses: list[float] = []
    bounds: list[tuple[float, float]] = []
    begun = Clock.now()
    for i in range(-WARM_UP, iterations):
        report((i + WARM_UP) / (WARM_UP + iterations), f"iteration {i + 1} of {iterations}" if i >= 0 else "warming up")
        if i == 0:
            begun = Clock.now()
        loss, bound = _iteration(trainer, recorder, i)
        losses.append(loss)
        if i >= 0:
            bounds.append(bound)
    peak = torch.cuda.max_memory_allocated() if cuda else _peak_resident_B() - before
    spent = Clock.now().since(begun)
    trainer.close()
    return {"pieces": recorder.pieces, "losses": losses, "bounds": bounds, "peak_B": peak, "spent": spent}


def _iteration(trainer: Trainer, recorder: Recorder, number: int) -> tuple[float, tuple[float, float]]:
    """Loss and (start, end) of one iteration, which all ranks begin together."""
    recorder.iteration = -1
    dist.barrier()
    recorder.iteration = number
    origin, start = recorder.now(), time.perf_counter()
    loss = trainer.iteration()
    if recorder.cuda:
        assert not isinstance(origin, float)
        recorder.resolve(origin, start)
    return loss, (start, time.perf_counter())


def _peak_resident_B() -> int:
    """The most memory this process ever had.

    Linux starts a process's `ru_maxrss` at the size of its parent, so that growth would not show; its VmHWM starts at nothing.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
