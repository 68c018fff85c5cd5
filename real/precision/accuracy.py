"""What precisions cost in accuracy, measured: `python -m real.precision.accuracy` trains small networks and prints a table.

Every variant of a task starts from the same weights and sees the same batches for a seed. Numbers are rounded as a device with int8
and float16 would (`Numerics.emulate`: products in float32 of rounded numbers); accuracy is of the trained weights, evaluated in
float32. The tasks are made hard for int8 with one scale per tensor, and say how.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from costmodels.files import write_atomically
from costmodels.operator_graph import OperatorGraph
from costmodels.precision import allowed
from real.precision.binding import bind
from real.precision.digits import Split, images, tokens
from real.precision.models import Model
from real.precision.rounding import Rounding, Scaling
from real.precision.small_transformer import SmallTransformer
from real.precision.statistics import collect
from real.precision.tracing import trace
from real.precision.vision import SmallResNet
from simcore.qsync.indicator import sensitivities

HAS = ("int8", "float16", "float32")
"""Of a T4."""

WIDE = "float32"
"""What the operators get that a choice keeps out of int8."""

FIRST_SEED = 10
"""Lower seeds served to find the tasks' settings, and are not measured."""

VARIANTS = ("float32", "float16", "int8", "theory", "relative", "random")
"""Uniform precisions; by an indicator; at random with as many operators in int8 as by an indicator."""

LOSS_SCALE = 1024.0
"""Keeps small gradients within float16; a power of two, so that it changes nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something to learn, and how. `hard` says what makes it hard for int8."""

    name: str
    hard: str
    module: Callable[[], nn.Module]
    data: Callable[[int], Split]
    epochs: int
    batch: int = 64
    rate: float
    adam: bool = False
    rounding: Rounding = "nearest"
    scaling: Scaling = "tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One training run: accuracy in per cent, mean loss of the first and the last tenth of the steps."""

    task: str
    variant: str
    seed: int
    accuracy: float
    first_loss: float
    last_loss: float
    in_int8: int
    seconds: float
    precision: Mapping[str, str] = field(default_factory=dict)


def _resnet_data(seed: int) -> Split:
    return images(seed, dimmest=2.0**-14)


def _small_resnet() -> nn.Module:
    return SmallResNet(width=8)


def _one_layer() -> nn.Module:
    return SmallTransformer(tokens=49, width=32, layers=1, dropout=0.0)


TASKS = (
    Task(
        name="resnet, exposures",
        hard="images with exposures from 1/16384 to 1, all in one scale; three epochs at a rate of 0.1",
        module=_small_resnet,
        data=_resnet_data,
        epochs=3,
        rate=0.1,
    ),
    Task(
        name="transformer, shades",
        hard="stochastic rounding with one scale per tensor; four epochs",
        module=_one_layer,
        data=tokens,
        epochs=4,
        rate=1e-2,
        adam=True,
        rounding="stochastic",
    ),
)


def model_of(task: Task, split: Split) -> Model:
    """The task's network from torch's generator, with examples of its training data."""

    def example(batch: int) -> tuple[tuple[Tensor], Tensor]:
        like = split.inputs
        shape = (batch, *like.shape[1:])
        inputs = torch.zeros(shape, dtype=like.dtype)
        return (inputs,), torch.zeros(batch, dtype=torch.int64)

    return Model(
        name=task.name,
        source="windtunnel",
        sample="digits",
        module=task.module(),
        example=example,
        loss=functional.cross_entropy,
    )


def choose(task: Task, graph: OperatorGraph, split: Split, variant: str, seed: int) -> dict[str, str]:
    """The precision of every adjustable operator. Half of those that can be int8 are, where a variant chooses."""
    adjustable = [o for o in graph if allowed(o, HAS)]
    if variant in HAS:
        return {o.name: variant if variant in allowed(o, HAS) else WIDE for o in adjustable}
    narrow = [o.name for o in adjustable if "int8" in allowed(o, HAS)]
    if variant == "random":
        order = [narrow[i] for i in np.random.default_rng(seed).permutation(len(narrow))]
    else:
        torch.manual_seed(seed)
        model = model_of(task, split)
        model.module.train()
        starts = range(0, 10 * task.batch, task.batch)
        batches = (((split.inputs[i : i + task.batch],), split.classes[i : i + task.batch]) for i in starts)
        found = collect(model, graph, batches, source="the first ten batches, weights as initialised")
        omega = sensitivities(graph, found, HAS, variant)  # type: ignore[arg-type]
        order = sorted(narrow, key=lambda name: omega[name]["int8"] - omega[name][WIDE])
    in_int8 = set(order[: len(order) // 2])
    return {o.name: "int8" if o.name in in_int8 else WIDE for o in adjustable}


def train(
    task: Task, graph: OperatorGraph, split: Split, chosen: Mapping[str, str], seed: int
) -> tuple[nn.Module, list[float]]:
    """The trained module, and the loss of each step."""
    torch.manual_seed(seed)
    model, generator, order = model_of(task, split), *(torch.Generator().manual_seed(seed + i) for i in range(2))
    model.module.train()
    parameters = list(model.module.parameters())
    adam = torch.optim.AdamW(parameters, lr=task.rate)
    optimizer = adam if task.adam else torch.optim.SGD(parameters, lr=task.rate, momentum=0.9)
    per_epoch = len(split.classes) // task.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.rate, total_steps=task.epochs * per_epoch)
    how: dict[str, Any] = {"rounding": task.rounding, "scaling": task.scaling, "emulate": True, "generator": generator}
    bound = bind(model.module, graph, chosen, HAS, **how)
    losses = []
    for _ in range(task.epochs):
        for rows in torch.randperm(len(split.classes), generator=order)[: per_epoch * task.batch].split(task.batch):
            optimizer.zero_grad()
            with bound:
                loss = model.objective((split.inputs[rows],), split.classes[rows])
            (loss * LOSS_SCALE).backward()
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= LOSS_SCALE
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    bound.close()
    return model.module, losses


def accuracy_of(module: nn.Module, split: Split) -> float:
    """Per cent of the test samples, in float32."""
    module.eval()
    with torch.no_grad():
        right = module(split.test_inputs).argmax(1) == split.test_classes
    return 100 * float(right.float().mean())


def measure(job: tuple[int, str, int]) -> Outcome:
    """One run: place of the task in `TASKS`, variant, seed."""
    place, variant, seed = job
    torch.set_num_threads(1)
    task, begun = TASKS[place], time.perf_counter()
    split = task.data(seed)
    graph = trace(model_of(task, split))
    chosen = choose(task, graph, split, variant, seed)
    module, losses = train(task, graph, split, chosen, seed)
    tenth = max(len(losses) // 10, 1)
    return Outcome(
        task=task.name,
        variant=variant,
        seed=seed,
        accuracy=accuracy_of(module, split),
        first_loss=float(np.mean(losses[:tenth])),
        last_loss=float(np.mean(losses[-tenth:])),
        in_int8=sum(p == "int8" for p in chosen.values()),
        seconds=time.perf_counter() - begun,
        precision=chosen,
    )


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Mean and standard error over seeds, in lines; recovered is the share of int8's loss that a choice wins back."""
    for task in TASKS:
        mine = [o for o in outcomes if o.task == task.name]
        mean = {v: _mean_and_error([o.accuracy for o in mine if o.variant == v]) for v in VARIANTS}
        if any(not [o for o in mine if o.variant == v] for v in VARIANTS):
            continue
        lost = mean["float32"][0] - mean["int8"][0]
        told = lost > mean["int8"][1] + mean["float32"][1]
        yield f"{task.name} ({task.hard})"
        yield f"  {'precision':<22} {'accuracy %':>14} {'in int8':>8} {'below float32':>14} {'recovered':>10}"
        for variant in VARIANTS:
            average, error = mean[variant]
            count = next(o.in_int8 for o in mine if o.variant == variant)
            below = mean["float32"][0] - average
            chooses = variant not in HAS
            share = f"{(lost - below) / lost:10.0%}" if chooses and told else f"{'':10}"
            label = variant if not chooses or variant == "random" else f"qsync, {variant}"
            yield f"  {label:<22} {average:8.2f} ±{error:4.2f} {count:>8} {below:>14.2f} {share}"
        if not told:
            yield "  int8 loses nothing here that these seeds can tell."


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return float("nan"), float("nan")
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), spread / len(values) ** 0.5


def _seeds(count: int) -> range:
    return range(FIRST_SEED, FIRST_SEED + count)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Train small networks in several precisions and compare accuracy.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/accuracy.json"))
    given = parser.parse_args(arguments)
    jobs = [(i, variant, seed) for seed in _seeds(given.seeds) for i in range(len(TASKS)) for variant in VARIANTS]
    begun = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        outcomes = pool.map(measure, jobs, chunksize=1)
    document = {"seeds": given.seeds, "torch": torch.__version__, "outcomes": [asdict(o) for o in outcomes]}
    write_atomically(given.out, json.dumps(document, indent=1) + "\n")
    lines = [*table(outcomes), f"{given.seeds} seeds, {time.perf_counter() - begun:.0f} s, written to {given.out}"]
    print("\n".join(lines))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
