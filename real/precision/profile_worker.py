"""What each process of a profile does: iterations of several plans in turn, side by side with the others, and casts alone.

Started as `python -m real.precision.profile_worker FOLDER ROUNDS`: FOLDER holds precisions.json, casts.json and plans, those of
profiles/*.json computed without communication, those of runs/*.json as they are; it takes rank0.json, rank1.json, ... Each round
has one iteration of every plan, so that what makes a machine slower for a while makes all of them slower.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from real.launch import tell
from real.microbench import InTurn, timed
from real.precision.allocations import peak_B
from real.precision.materials import gather
from real.precision.placing import HAS
from real.precision.products import Product, accumulated, multiply
from real.precision.rounding import STORED, Scaled, rounded, scaled
from real.precision.training import OperatorTrainer
from real.process import joined
from real.recorder import Recorder
from simcore.plan import Plan

PROFILES, RUNS, CASTS = "profiles", "runs", "casts.json"
WARM_UP = 3
AT_LEAST_S = 0.02
SIZE = (1024, 512, 512)


@dataclass(slots=True)
class Turn:
    """A plan on this rank: seconds of each task by round, and when its rounds began and ended. `runs`: with communication."""

    trainer: OperatorTrainer
    runs: bool
    tasks: dict[str, list[float]] = field(default_factory=dict)
    bounds: list[tuple[float, float]] = field(default_factory=list)

    def iteration(self, number: int) -> None:
        """One iteration, which all ranks begin together; it counts from number 0 on."""
        recorder = self.trainer.recorder
        recorder.iteration = -1
        self.trainer.prepare()
        dist.barrier()
        recorder.iteration = number
        origin = recorder.now()
        self.trainer.iteration()
        if not isinstance(origin, float):
            recorder.resolve(origin, 0.0)
        if number >= 0:
            self._keep(number)
        recorder.pieces.clear()

    def _keep(self, number: int) -> None:
        pieces = self.trainer.recorder.pieces
        for task, _, start, end, _ in pieces:
            of = self.tasks.setdefault(task, [0.0] * number)
            of.extend([0.0] * (number + 1 - len(of)))
            of[number] += end - start
        self.bounds.append((min(p[2] for p in pieces), max(p[3] for p in pieces)))


@record
def main() -> None:
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    with joined(cuda=torch.cuda.is_available()) as device:
        rank = dist.get_rank()
        has = json.loads((folder / HAS).read_text())[rank]
        found: dict[str, Any] = {"profiles": {}, "runs": {}, "casts": []}
        turns = {
            (kind, path.stem): _turn(path, device, has) for kind in (PROFILES, RUNS) for path in _plans(folder, kind)
        }
        for number in range(-WARM_UP, rounds if turns else -WARM_UP):
            if rank == 0:
                tell(folder, (number + WARM_UP) / (rounds + WARM_UP + 1), f"round {max(number, 0) + 1} of {rounds}")
            order = list(turns.values())
            start = number % len(order)
            for turn in (*order[start:], *order[:start]):
                turn.iteration(number)
        for (kind, name), turn in turns.items():
            found[kind][name] = {"tasks": turn.tasks, "bounds": turn.bounds, "tensors_B": _tensors_B(turn)}
            turn.trainer.close()
        for source, target, elements in json.loads((folder / CASTS).read_text()):
            dist.barrier()
            found["casts"].append(cast_seconds(source, target, elements))
        if not turns:
            found["rates"] = {p: product_rate(p) for p in ("float32", "bfloat16", "float16", "int8")}
        write_atomically(folder / f"rank{rank}.json", json.dumps(found))


def _plans(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / kind).glob("*.json"))


def _turn(path: Path, device: torch.device, has: list[str]) -> Turn:
    plan, runs = Plan.load(path), path.parent.name == RUNS
    recorder = Recorder(cuda=device.type == "cuda")
    materials = gather(plan, dist.get_rank(), device, has)
    return Turn(OperatorTrainer(plan, device, recorder, has, materials, communicate=runs), runs)


def _tensors_B(turn: Turn) -> int | None:
    """The most bytes of tensors in one more iteration of a run on a CPU, where torch keeps no count of its own."""
    if not turn.runs or turn.trainer.recorder.cuda:
        return None
    turn.trainer.recorder.iteration = -1
    turn.trainer.prepare()
    return peak_B(turn.trainer.iteration, turn.trainer.standing())


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
