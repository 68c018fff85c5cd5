"""What each process of a run does: join the others, run the plan's iterations, leave its spans and losses in a file.

Started by the backend as `python -m real.worker FOLDER`: FOLDER holds plan.json and takes rank0.json, rank1.json, ...
"""

import json
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from real.launch import tell
from real.load import Clock
from real.precision.allocations import peak_B
from real.precision.materials import Materials, gather
from real.precision.memory_limit import MemoryLimit, out_of_memory
from real.precision.placing import HAS, OPERATORS, limit_of
from real.precision.training import OperatorTrainer
from real.process import joined
from real.recorder import Recorder
from real.training import Trainer, mesh_of, start_libraries
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

        plan = Plan.load(folder / PLAN)
        known = json.loads((folder / HAS).read_text())[rank]
        materials = gather(plan, rank, device, known) if plan.workload["name"] == OPERATORS else None
        if materials is None:
            start_libraries(plan, device)
        limit = MemoryLimit.start(rank, limit_of(plan, rank), device)
        try:
            result = _train(plan, device, known, materials, limit, report)
        except (RuntimeError, MemoryError) as error:
            if limit.limit_B is None or not out_of_memory(error):
                raise
            raise limit.exceeded("more, which was refused") from error
        write_atomically(folder / RESULT.format(rank=rank), json.dumps(result))


def _train(
    plan: Plan,
    device: torch.device,
    has: Collection[str],
    materials: Materials | None,
    limit: MemoryLimit,
    report: Callable[[float, str], None],
) -> dict[str, Any]:
    """Pieces of every task, losses with those of the warm-up, bounds of the iterations in seconds of this host's clock."""
    recorder = Recorder(cuda=device.type == "cuda")
    trainer = _trainer(plan, device, has, materials, recorder)
    iterations = int(plan.workload["iterations"])
    losses: list[float] = []
    bounds: list[tuple[float, float]] = []
    tensors_B = None
    limited = any(limit_of(plan, rank) is not None for rank in range(plan.n_ranks))
    begun = Clock.now()
    for i in range(-WARM_UP, iterations):
        report((i + WARM_UP) / (WARM_UP + iterations), f"iteration {i + 1} of {iterations}" if i >= 0 else "warming up")
        if i == 0:
            begun = Clock.now()
        loss, bound = _iteration(trainer, recorder, i)
        losses.append(loss)
        if i == -1 and limited:  # what is refused should not have run
            tensors_B = _tensors_B(trainer, limit)
            limit.hold(tensors_B or 0)
        if i >= 0:
            bounds.append(bound)
    spent = Clock.now().since(begun)
    tensors_B = _tensors_B(trainer, limit) if tensors_B is None else tensors_B
    trainer.close()
    return {
        "pieces": recorder.pieces,
        "losses": losses,
        "bounds": bounds,
        "peak_B": limit.used_B(),
        "tensors_B": tensors_B,
        "spent": spent,
    }


def _tensors_B(trainer: Trainer | OperatorTrainer, limit: MemoryLimit) -> int | None:
    """The most bytes of tensors in an iteration; where torch does not count them, in one more that is watched.

    None where FSDP2 keeps them.
    """
    if limit.cuda:
        return limit.used_B()
    trainer.recorder.iteration = -1
    trainer.prepare()
    standing = trainer.standing()
    return None if standing is None else peak_B(trainer.iteration, standing)


def _trainer(
    plan: Plan, device: torch.device, has: Collection[str], materials: Materials | None, recorder: Recorder
) -> Trainer | OperatorTrainer:
    """What runs this kind of plan."""
    if materials is not None:
        return OperatorTrainer(plan, device, recorder, has, materials)
    return Trainer(plan, mesh_of(plan, device), recorder)


def _iteration(
    trainer: Trainer | OperatorTrainer, recorder: Recorder, number: int
) -> tuple[float, tuple[float, float]]:
    """Loss and (start, end) of one iteration, which all ranks begin together."""
    recorder.iteration = -1
    trainer.prepare()
    dist.barrier()
    recorder.iteration = number
    origin, start = recorder.now(), time.perf_counter()
    loss = trainer.iteration()
    if recorder.cuda:
        assert not isinstance(origin, float)
        recorder.resolve(origin, start)
    return loss, (start, time.perf_counter())


if __name__ == "__main__":
    main()
