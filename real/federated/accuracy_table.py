"""What trainings with different strategies amount to: means over seeds, and how far the first strategy is ahead."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

LAST = 3
"""An accuracy is the mean of so many rounds."""

WHOLE = "FedAvg-MoE"
"""Its bytes through the server are 100 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: accuracies in per cent at the end of each round, bytes of all rounds and clients."""

    partition: str
    strategy: str
    seed: int
    aggregated: Sequence[float]
    trained: Sequence[float]
    server_B: int
    peer_B: int
    seconds: float

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Self:
        """From a file. Raises `TypeError` for other fields."""
        return cls(**{**kept, "aggregated": tuple(kept["aggregated"]), "trained": tuple(kept["trained"])})

    def accuracy(self, after: int | None = None) -> float:
        """With what rounds made, up to round `after`; default: all."""
        return float(np.mean(self.aggregated[:after][-LAST:]))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN for a single value."""
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(np.mean(values)), error


def ahead(runs: Sequence[Run], first: str, other: str, after: int | None = None) -> list[float]:
    """By how much `first` is more accurate than `other`, for each seed that both have: what a seed brings along cancels."""
    ours = {r.seed: r for r in runs if r.strategy == first}
    return [ours[r.seed].accuracy(after) - r.accuracy(after) for r in runs if r.strategy == other and r.seed in ours]


def table(runs: Sequence[Run], strategies: Sequence[str] | Mapping[str, Any]) -> Iterator[str]:
    """Lines for each partition; the first of `strategies` is compared with the others, also after a third of the rounds."""
    names = list(strategies)
    for partition in dict.fromkeys(r.partition for r in runs):
        mine = [r for r in runs if r.partition == partition]
        rounds = min(len(r.aggregated) for r in mine)
        third = max(rounds // 3, 1)
        yield f"{partition}: {len({r.seed for r in mine})} seeds, {rounds} rounds"
        yield (
            f"  {'strategy':<22} {'aggregated %':>13} {names[0] + ' ahead':>16} {f'after {third}':>13} {'trained %':>13} "
            + (f"{'server':>7} {'peers MB':>9}")
        )
        for name in [n for n in names if any(r.strategy == n for r in mine)]:
            yield _line(mine, name, names[0], third)


def _line(runs: Sequence[Run], name: str, first: str, third: int) -> str:
    own = [r for r in runs if r.strategy == name]
    whole = [r.server_B for r in runs if r.strategy == WHOLE]
    server = f"{np.mean([r.server_B for r in own]) / np.mean(whole):7.1%}" if whole else ""
    found = [
        _shown([r.accuracy() for r in own]),
        _shown(ahead(runs, first, name)) if name != first else "",
        _shown(ahead(runs, first, name, third)) if name != first else "",
        _shown([float(np.mean(r.trained[-LAST:])) for r in own]),
    ]
    cells = " ".join(f"{cell:>{width}}" for cell, width in zip(found, (13, 16, 13, 13), strict=True))
    return f"  {name:<22} {cells} {server:>7} {np.mean([r.peer_B for r in own]) / 1e6:9.1f}"


def _shown(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values) if values else (float("nan"), float("nan"))
    return f"{mean:.2f} ±{error:.2f}"
