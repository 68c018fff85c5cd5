"""Digits from the files of installed packages."""

import numpy as np
import pytest

from real import shipped


def test_digits_are_there_with_their_classes() -> None:
    pixels, classes = shipped.mnist()
    assert pixels.shape == (5000, 28, 28) and (pixels.min(), pixels.max()) == (0.0, 1.0)
    assert np.bincount(classes).tolist() == [500] * 10
    pixels, classes = shipped.small_digits()
    assert pixels.shape == (1797, 8, 8) and (pixels.min(), pixels.max()) == (0.0, 1.0)
    assert classes[:10].tolist() == list(range(10))


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        shipped._digits("no_such_package", "digits.csv.gz", white=1)
