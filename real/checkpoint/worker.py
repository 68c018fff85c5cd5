"""What each process does for a plan of checkpoints: saves, loads, or a save with training beside it, as the plan has them.

Started as `python -m real.checkpoint.worker FOLDER ROOT prepare|COPY_B_per_s`: FOLDER holds plan.json and takes rank0.json, ...;
checkpoints are under ROOT. `prepare` only saves what a load of the plan wants; otherwise saves and loads count that happen while
all ranks copy so many bytes per second (`speed`), any for 0.
"""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from real.checkpoint.players import Bound, Loads, Saves, Training, choice_of
from real.checkpoint.spans import Span
from real.checkpoint.speed import Speedometer
from real.checkpoint.steady import Run, steady_runs
from real.launch import tell
from real.load import Clock
from real.precision.memory_limit import MemoryLimit
from real.process import joined
from real.worker import PLAN, RESULT
from simcore.plan import Plan


@record
def main() -> None:
    """Run the plan of the folder."""
    folder, root = Path(sys.argv[1]), Path(sys.argv[2])
    plan = Plan.load(folder / PLAN)
    with joined(cuda=torch.cuda.is_available()) as device:
        if sys.argv[3] == "prepare":
            Saves(plan, device, root, choice_of(plan, "saved_parallelism")).once(0)
            return
        result = _measured(plan, device, root, folder, float(sys.argv[3]) or None)
        write_atomically(folder / RESULT.format(rank=dist.get_rank()), json.dumps(result))


def _measured(
    plan: Plan, device: torch.device, root: Path, folder: Path, usual_B_per_s: float | None
) -> dict[str, Any]:
    """As `real.worker` leaves it: pieces of tasks, bounds of iterations, losses, memory; and how fast memory was in each."""
    plays = plan.decisions["checkpoint"]["plays"]
    makes: dict[str, Callable[[], Saves | Loads | Training]] = {
        "training": lambda: Training(plan, device, root),
        "save": lambda: Saves(plan, device, root, choice_of(plan)),
    }
    speedometer = Speedometer(root)
    limit = MemoryLimit.start(dist.get_rank(), None, device)
    player = makes.get(plays, lambda: Loads(plan, device, root))()
    player.warm()
    begun = Clock.now()
    runs = _runs(player, speedometer, int(plan.workload["iterations"]), usual_B_per_s, folder)
    spent = Clock.now().since(begun)
    pieces = [(task, i, a, b, size) for i, run in enumerate(runs) for task, a, b, size in run.result[1]]
    return {
        "pieces": [*pieces, *(player.recorder.pieces if isinstance(player, Training) else ())],
        "losses": player.losses if isinstance(player, Training) else [],
        "bounds": [run.result[0] for run in runs],
        "speeds": [asdict(run.speed) for run in runs],
        "peak_B": limit.used_B(),
        "tensors_B": player.tensors_B(),
        "spent": spent,
    }


def _runs(
    player: Saves | Loads | Training, speedometer: Speedometer, count: int, usual_B_per_s: float | None, folder: Path
) -> list[Run[tuple[Bound, list[Span]]]]:
    """The runs that count; of training all do, since it goes on from one to the next."""
    numbers = itertools.count()

    def once() -> tuple[Bound, list[Span]]:
        number = next(numbers)
        if dist.get_rank() == 0:
            tell(folder, min(number / count, 1.0), f"run {number + 1} for {count} that count")
        return player.once(number)

    return steady_runs(speedometer, once, count, None if isinstance(player, Training) else usual_B_per_s)


if __name__ == "__main__":
    main()
