"""Means of accuracy runs over seeds, differences from float32 paired by seed, and what they say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from real.precision.accuracy_plans import VARIANTS, Choices
from real.precision.accuracy_tasks import Task

BASE = "float32"

BEYOND = 2.0
"""Standard errors by which int8 has to lose to be said to lose."""

HALF = 0.5
"""Share of int8's loss that a plan is to win back, and points that it may stay below float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One training run: accuracy in per cent, mean loss of the first and the last tenth of the steps.

    `skipped` steps had gradients beyond float16. `precision` is that of every adjustable operator.
    """

    task: str
    variant: str
    seed: int
    accuracy: float
    first_loss: float
    last_loss: float
    in_int8: int
    skipped: int
    seconds: float
    precision: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant of a task: accuracy in per cent over seeds, its standard deviation, and points below float32.

    `error` is the standard error of the mean of differences that are paired by seed, 0 for a single seed. `recovered` is the share
    of int8's loss that is won back, None where int8 loses nothing that these seeds can tell, and for float32 and int8 themselves.
    `in_int8` is the mean number of operators.
    """

    task: str
    variant: str
    seeds: int
    accuracy: float
    deviation: float
    below: float
    error: float
    recovered: float | None
    in_int8: float


def summary(outcomes: Sequence[Outcome]) -> list[Row]:
    """Rows of each task in the order of `VARIANTS`, over the seeds that all variants have."""
    found = []
    for task in dict.fromkeys(o.task for o in outcomes):
        of = {v: {o.seed: o for o in outcomes if (o.task, o.variant) == (task, v)} for v in VARIANTS}
        seeds = sorted(set.intersection(*(set(runs) for runs in of.values())))
        if seeds:
            found += _rows(task, {v: [runs[s] for s in seeds] for v, runs in of.items()})
    return found


def _rows(task: str, of: Mapping[str, Sequence[Outcome]]) -> Iterator[Row]:
    base = np.array([o.accuracy for o in of[BASE]])
    lost, error = _mean_and_error(base - [o.accuracy for o in of["int8"]])
    for variant, runs in of.items():
        accuracy = np.array([o.accuracy for o in runs])
        below, own_error = _mean_and_error(base - accuracy)
        told = variant not in (BASE, "int8") and lost > BEYOND * error
        yield Row(
            task=task,
            variant=variant,
            seeds=len(runs),
            accuracy=float(accuracy.mean()),
            deviation=float(accuracy.std(ddof=1)) if len(runs) > 1 else 0.0,
            below=below,
            error=own_error,
            recovered=(lost - below) / lost if told else None,
            in_int8=float(np.mean([o.in_int8 for o in runs])),
        )


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()), spread / len(values) ** 0.5


def verdict(rows: Sequence[Row]) -> str:
    """What one task's rows say of int8 and of the plan."""
    row = {r.variant: r for r in rows}
    int8, plan = row["int8"], row["qsync"]
    lost = f"{int8.below:.2f} ± {int8.error:.2f} points"
    if plan.recovered is None:
        return f"int8 loses nothing here that these seeds can tell ({lost})."
    holds = plan.recovered >= HALF and plan.below <= HALF
    won = f"QSync's plan wins back {plan.recovered:.0%} and stays {plan.below:.2f} ± {plan.error:.2f} below float32"
    return f"int8 loses {lost}. {won}: {'as wanted' if holds else 'less than wanted (half, and within 0.5 points)'}."


def table(tasks: Sequence[Task], plans: Sequence[Choices], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Lines of text."""
    every = summary(outcomes)
    for task in tasks:
        rows = [r for r in every if r.task == task.name]
        if not rows:
            continue
        n = len(next(o for o in outcomes if o.task == task.name).precision)
        yield f"{task.name}: {task.hard}; {task.rounding} rounding, {task.epochs} epochs, {n} operators"
        yield f"  {_limit([c for c in plans if c.task == task.name])}"
        yield f"  {'precision':<12}{'accuracy %':>11}{'deviation':>11}{'in int8':>9}{'below float32':>16}{'recovered':>11}"
        for r in rows:
            below = "" if r.variant == BASE else f"{r.below:.2f} ± {r.error:.2f}"
            share = "" if r.recovered is None else f"{r.recovered:.0%}"
            line = f"  {r.variant:<12}{r.accuracy:>11.2f}{r.deviation:>11.2f}{r.in_int8:>9.1f}{below:>16}{share:>11}"
            yield line.rstrip()
        yield f"  {verdict(rows)}"


def _limit(plans: Sequence[Choices]) -> str:
    """Of the first seed's plan; the same for all, since only statistics differ."""
    facts = plans[0].plan
    needs = ", ".join(f"{p} {_MB(b)}" for p, b in facts["uniform_memory_B"].items())
    return (
        f"memory of the T4: {_MB(facts['memory_limit_B'])}, of which the plan takes {_MB(facts['memory_B'])}; {needs}"
    )


def _MB(nbytes: float) -> str:
    return f"{nbytes / 1e6:.2f} MB"
