"""What `real.precision.accuracy` trains, on settings where int8 with one scale for each tensor loses something.

Both have outliers in what the network reads, as data of sensors do. One scale for all of a tensor is then set by few large values,
and the others fall on few of its 127 steps. Norms of each sample or token make the networks indifferent to such scales, so that
float32 loses nothing: a product that is computed before the norm is where the bits are needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from real.precision.digits import Split, flashed, marked
from real.precision.models import Model
from real.precision.rounding import Rounding
from real.precision.small_transformer import PatchTransformer
from real.precision.vision import SmallResNet

TESTED = 2500
"""Of the 5,000 images; the other half is trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something to learn, and how. `hard` says what makes it hard for int8.

    `spare` sets the limit of memory: 0 is what the T4 needs in uniform int8, 1 what it needs in uniform float16. `tolerance` is the
    planner's, of time.
    """

    name: str
    hard: str
    module: Callable[[], nn.Module]
    data: Callable[[int], Split]
    epochs: int
    batch: int = 64
    rate: float
    rounding: Rounding = "stochastic"
    spare: float = 0.5
    tolerance: float = 0.5


def model_of(task: Task, split: Split) -> Model:
    """The task's network from torch's generator, with examples of its training data."""

    def example(batch: int) -> tuple[tuple[Tensor], Tensor]:
        inputs = torch.zeros((batch, *split.inputs.shape[1:]), dtype=split.inputs.dtype)
        return (inputs,), torch.zeros(batch, dtype=torch.int64)

    return Model(
        name=task.name,
        source="windtunnel",
        sample="an MNIST digit",
        module=task.module(),
        example=example,
        loss=functional.cross_entropy,
    )


def _of_each_image(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _resnet() -> nn.Module:
    return SmallResNet(width=8, norm=_of_each_image, activation=nn.SiLU)


def _flashed(seed: int) -> Split:
    return flashed(seed, tested=TESTED, share=0.1, white=4095.0, dim=2.0**-9)


def _transformer() -> nn.Module:
    return PatchTransformer(pixels=49, patches=16, width=32, layers=1)


def _marked(seed: int) -> Split:
    return marked(seed, tested=TESTED, patch=7, white=2.0, marker=768.0)


TASKS = (
    Task(
        name="resnet",
        hard="a tenth of the images is taken with flash, the others 512 times dimmer, in counts of one sensor",
        module=_resnet,
        data=_flashed,
        epochs=4,
        rate=1e-2,
    ),
    Task(
        name="transformer",
        hard="the first of 16 patches is a marker, 384 times as bright as white",
        module=_transformer,
        data=_marked,
        epochs=8,
        rate=5e-3,
    ),
)
