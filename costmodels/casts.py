"""Seconds of a cast as a straight line in the size of the tensor: a fit to measurements, and QSync's released coefficients.

QSync fits `a * numel + b` for each pair of precisions on each machine; `RELEASED` is what its repository ships (scales by tensor).
Planners of precisions take it instead of the device's own casts where a scenario says `casts: released`: the kernel
`released_cast` then stands for all of a cast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from costmodels.precision import BITS
from costmodels.prediction import Floats, Prediction


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds for each element, and for each cast. The second may be negative: it is where a fit meets the axis."""

    each_s: float
    once_s: float

    def seconds(self, elements: ArrayLike) -> Floats:
        """Never below 0; in the shape of `elements`."""
        return np.maximum(self.each_s * np.asarray(elements, dtype=np.float64) + self.once_s, 0.0)


def fit(elements: Sequence[float], seconds: Sequence[float]) -> Line:
    """The least squares line through measured casts of one pair of precisions; needs two different sizes."""
    if len(set(elements)) < 2:
        raise ValueError("a line needs casts of at least two sizes")
    sizes = np.asarray(elements, dtype=np.float64)
    columns = np.stack([sizes, np.ones_like(sizes)], axis=1)
    scale = np.array([sizes.max(), 1.0])
    (each, once), *_ = np.linalg.lstsq(columns / scale, np.asarray(seconds, dtype=np.float64), rcond=None)
    return Line(float(each / scale[0]), float(once))


def _milliseconds(each: float, once: float) -> Line:
    return Line(each * 1e-3, once * 1e-3)


RELEASED: Mapping[tuple[str, str], Line] = {
    ("float32", "float16"): _milliseconds(2.878e-8, 1.01e-3),
    ("float16", "float32"): _milliseconds(2.878e-8, 1.01e-3),
    ("float16", "int8"): _milliseconds(1.285e-7, 4.6e-4),
    ("float32", "int8"): _milliseconds(1.418e-7, 1.22e-2),
    ("int8", "float16"): _milliseconds(2.617e-8, 4.2e-3),
    ("int8", "float32"): _milliseconds(2.727e-8, -2.5e-3),
}
"""QSync's released code (IPDPS 2024), by source and target; its device is not stated, and its README says to fit anew."""

RELEASED_BY_CHANNEL: Mapping[tuple[str, str], Line] = {
    ("float16", "int8"): _milliseconds(1.123e-7, 0.0254),
    ("float32", "int8"): _milliseconds(1.710e-7, 0.0290),
    ("int8", "float16"): _milliseconds(5.94e-8, 0.0085),
    ("int8", "float32"): _milliseconds(3.37e-8, 0.0049),
}
"""The same with a scale for each channel."""

RELEASED_AMONG = ("int8", "float16", "tf32", "float32")
"""Precisions among which every cast was released; tf32 is float32 in memory."""


def predict(source: str, sizes: Mapping[str, ArrayLike]) -> Prediction:
    """A `released_cast` from precision `source` of `elements` to `bits`, `by_channel` 1 or 0; the error is not known."""
    bits, by_channel = np.asarray(sizes["bits"]), np.asarray(sizes["by_channel"], dtype=np.bool_)
    seconds = np.full(bits.shape, np.nan)
    for (given, target), line in RELEASED.items():
        if given == source:
            own = RELEASED_BY_CHANNEL.get((given, target), line)
            found = np.where(by_channel, own.seconds(sizes["elements"]), line.seconds(sizes["elements"]))
            seconds = np.where(bits == BITS[target], found, seconds)
    return Prediction.plain(np.asarray(seconds, dtype=np.float64))
