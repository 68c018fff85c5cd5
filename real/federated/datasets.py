"""Images with classes: what installed packages ship, and CIFAR where a user has it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from real import shipped
from simcore.errors import InputError, Problem

CIFAR_PIXELS = 3 * 32 * 32


class Images(NamedTuple):
    """(samples, channels, height, width) float32 from 0 to 1, and (samples,) int64 classes."""

    pixels: Tensor
    classes: Tensor


def mnist() -> Images:
    """5,000 handwritten digits of 28 x 28 pixels."""
    return _images(shipped.mnist())


def small_digits() -> Images:
    """1,797 handwritten digits of 8 x 8 pixels."""
    return _images(shipped.small_digits())


def _images(digits: shipped.Digits) -> Images:
    pixels, classes = digits
    return Images(torch.from_numpy(pixels)[:, None], torch.from_numpy(classes))


def cifar(folder: Path) -> Images:
    """CIFAR-10 or CIFAR-100 (fine classes) in its binary version from `folder`: data_batch_*.bin or train.bin, and the test files.

    Raises `InputError` for a folder without them, or a file whose size is not one of whole images.
    """
    ten = sorted(folder.glob("data_batch_*.bin")) + sorted(folder.glob("test_batch.bin"))
    hundred = sorted(folder.glob("train.bin")) + sorted(folder.glob("test.bin"))
    files, labels = (ten, 1) if ten else (hundred, 2)
    if not files:
        advice = (
            "Unpack the binary version of CIFAR there; the one for Python is pickled, which runs code as it is read."
        )
        raise InputError("no CIFAR here", [Problem("folder", str(folder), "data_batch_1.bin ... or train.bin", advice)])
    rows = []
    for file in files:
        raw = np.fromfile(file, dtype=np.uint8)
        if len(raw) == 0 or len(raw) % (labels + CIFAR_PIXELS):
            wanted = f"a multiple of {labels + CIFAR_PIXELS} B"
            raise InputError(f"{file.name} holds no whole images", [Problem(str(file), f"{len(raw)} B", wanted)])
        rows.append(raw.reshape(-1, labels + CIFAR_PIXELS))
    table = np.concatenate(rows)
    pixels = torch.from_numpy(table[:, labels:].astype(np.float32) / 255).view(-1, 3, 32, 32)
    return Images(pixels, torch.from_numpy(table[:, labels - 1].astype(np.int64)))
