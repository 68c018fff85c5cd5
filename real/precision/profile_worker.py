"""What each process of a profile does: run plans of uniform precision side by side with the others, and time casts alone.

Started as `python -m real.precision.profile_worker FOLDER ITERATIONS`: FOLDER holds plans/*.json, precisions.json and casts.json,
and takes rank0.json, rank1.json, ...
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from real.launch import tell
from real.microbench import InTurn, mean_and_spread, timed
from real.precision.materials import gather
from real.precision.placing import HAS
from real.precision.products import Product, accumulated, multiply
from real.precision.rounding import STORED, Scaled, rounded, scaled
from real.precision.training import OperatorTrainer
from real.process import joined
from real.recorder import Recorder
from simcore.plan import Plan

PLANS, CASTS = "plans", "casts.json"
PASSES = 2
"""Every plan so often, some time apart; the faster counts for each task, so that what else ran for a moment does not."""

WARM_UP = 3
AT_LEAST_S = 0.02
SIZE = (1024, 512, 512)


@record
def main() -> None:
    folder, iterations = Path(sys.argv[1]), int(sys.argv[2])
    with joined(cuda=torch.cuda.is_available()) as device:
        has = json.loads((folder / HAS).read_text())[dist.get_rank()]
        found: dict[str, Any] = {"tasks": {}, "casts": []}
        paths = sorted((folder / PLANS).glob("*.json"))
        for done, path in enumerate(paths * PASSES):
            if dist.get_rank() == 0:
                tell(folder, done / (len(paths) * PASSES + 1), path.stem)
            now = task_seconds(Plan.load(path), device, has, iterations)
            before = found["tasks"].get(path.stem, {})
            found["tasks"][path.stem] = {task: min(seconds, before.get(task, seconds)) for task, seconds in now.items()}
        casts = json.loads((folder / CASTS).read_text())
        for source, target, elements in casts:
            dist.barrier()
            found["casts"].append(cast_seconds(source, target, elements))
        if not paths:
            found["rates"] = {p: product_rate(p) for p in ("float32", "bfloat16", "float16", "int8")}
        write_atomically(folder / f"rank{dist.get_rank()}.json", json.dumps(found))


def task_seconds(plan: Plan, device: torch.device, has: list[str], iterations: int) -> dict[str, float]:
    """Mean seconds of each task in an iteration, without the slowest twentieth of them; nothing is communicated."""
    recorder = Recorder(cuda=device.type == "cuda")
    materials = gather(plan, dist.get_rank(), device, has)
    trainer = OperatorTrainer(plan, device, recorder, has, materials, communicate=False)
    for i in range(-WARM_UP, iterations):
        recorder.iteration = -1
        trainer.prepare()
        dist.barrier()
        recorder.iteration = i
        origin, start = recorder.now(), 0.0
        trainer.iteration()
        if not isinstance(origin, float):
            recorder.resolve(origin, start)
    trainer.close()
    by_task: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for task, i, start, end, _ in recorder.pieces:
        by_task[task][i] += end - start
    return {task: mean_and_spread(list(of.values()))[0] for task, of in by_task.items()}


def cast_seconds(source: str, target: str, elements: int) -> tuple[float, float]:
    """Seconds in which the largest magnitude is looked for (0 for casts that need none), and in which the rest is done."""
    plain = "float32" if source in ("int8", "fp8") else source
    tensors = InTurn(lambda: (torch.randn(elements).to(STORED[plain]),))
    if source in ("int8", "fp8"):
        kept = [scaled(x, source, "nearest", None) for (x,) in tensors.copies]
        turn = iter(range(10**9))
        return 0.0, timed(lambda: _widened(kept[next(turn) % len(kept)], target), AT_LEAST_S)[0]
    if target not in ("int8", "fp8"):
        return 0.0, timed(lambda: rounded(tensors.next()[0], target, "nearest", None), AT_LEAST_S)[0]
    looking = timed(lambda: _largest(tensors.next()[0].float()), AT_LEAST_S)[0]
    whole = timed(lambda: scaled(tensors.next()[0], target, "nearest", None).values, AT_LEAST_S)[0]
    return looking, max(whole - looking, 0.2 * whole)


def _widened(kept: Scaled, target: str) -> torch.Tensor:
    return kept.widened(STORED[target])


def _largest(x: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x.amax(), -x.amin())


def product_rate(precision: str) -> float:
    """FLOP a second of a product of matrices, both operands as an operator in this precision keeps them."""
    m, n, k = SIZE
    product = Product(kind="linear")
    kind = STORED[precision]
    v, w = (
        torch.randint(-127, 128, size, dtype=kind) if precision == "int8" else torch.randn(*size).to(kind)
        for size in ((m, k), (n, k))
    )
    run = accumulated if precision == "int8" else multiply
    return 2.0 * m * n * k / timed(lambda: run(product, v, w), 0.1)[0]


if __name__ == "__main__":
    main()
