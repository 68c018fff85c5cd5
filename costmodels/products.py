"""Products of matrices inside operators: convolutions, log-probabilities, and products whose operands a cast narrowed before.

A convolution is the product of a matrix that it never writes down (implicit GEMM): a row for each output place, a column for each
number in the window of the kernel. Multiplications and tiles are those of `costmodels.gemm`; from memory come the tensors, not the
matrix, in which a number stands as often as windows cover it. Convolutions take what is typical of
libraries of products, whichever a scenario names: another library runs them (cuDNN, in PyTorch), of which nothing was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from costmodels import gemm
from costmodels.arithmetic import format_of
from costmodels.kernels import conv_depth
from costmodels.prediction import Prediction
from costmodels.specs import DeviceSpec

WRITES_B = {"int8": 4.0}
"""Bytes of a number that a narrow product hands on: int8 scaled to float32 (`costmodels.precision.HANDS_ON`), others in 16 bits."""


@dataclass(frozen=True, slots=True)
class Operands:
    """Bytes of an element of each matrix, none of which has to be narrowed first."""

    a_B: Any
    b_B: Any
    c_B: Any
    quantises: bool = False


def narrowed(
    device: DeviceSpec,
    dtype: str,
    batch: ArrayLike,
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    *,
    library: str | None = None,
) -> Prediction:
    """As `gemm.predict`, of operands that are stored in `dtype` already."""
    form = format_of(dtype, device)
    widths = None if form is None else Operands(form.a_B, form.b_B, _written_B(dtype, form.c_B))
    return gemm.predict(device, dtype, batch, m, n, k, library=library, widths=widths)


def convolution(device: DeviceSpec, name: str, dtype: str, sizes: Mapping[str, ArrayLike]) -> Prediction:
    """One conv2d or conv2d_backward of `costmodels.kernels`; sizes are numbers or arrays that broadcast.

    Backward is the product for the gradient of the weight, in which places are summed over, and where `data` is not 0 that for the
    gradient of the input, in which filters are.
    """
    s = {key: np.asarray(value, dtype=np.float64) for key, value in sizes.items()}
    groups, places = s["groups"], s["batch"] * s["out_h"] * s["out_w"]
    filters, depth = s["filters"] / groups, conv_depth(s)
    # numbers of the input for each element of the matrix of windows
    seen = s["batch"] * s["channels"] * s["height"] * s["width"] / (groups * places * depth)
    form = format_of(dtype, device)
    a, b, c = (form.a_B, form.b_B, _written_B(dtype, form.c_B)) if form is not None else (0.0, 0.0, 0.0)
    if name == "conv2d":
        return gemm.predict(device, dtype, groups, places, filters, depth, widths=Operands(a * seen, b, c))
    weight = gemm.predict(device, dtype, groups, filters, depth, places, widths=Operands(a, b * seen, c))
    data = gemm.predict(device, dtype, groups, places, depth, filters, widths=Operands(a, b, c * seen))
    return Prediction(
        seconds=weight.seconds + s["data"] * data.seconds,
        error=np.maximum(weight.error, data.error),
        extrapolated=weight.extrapolated | data.extrapolated,
    )


def logprob(device: DeviceSpec, name: str, dtype: str, sizes: Mapping[str, ArrayLike]) -> Prediction:
    """One linear_logprob or linear_logprob_backward of `costmodels.kernels`; sizes are numbers or arrays that broadcast.

    Forward is the product of the last layer that writes nothing; backward that product once more, now with its gradient as result,
    and the products of that with either operand. Nothing was measured of kernels that work like this: what they do to a tile of
    logits beside the product is not counted.
    """
    s = {key: np.asarray(value, dtype=np.float64) for key, value in sizes.items()}
    rows, cols, vocab = s["rows"], s["cols"], s["vocab"]
    form = format_of(dtype, device)
    a, b = (form.a_B, form.b_B) if form is not None else (0.0, 0.0)
    if name == "linear_logprob":
        found = [gemm.predict(device, dtype, 1, rows, vocab, cols, widths=Operands(a, b, 0.0))]
    else:
        shapes = ((rows, vocab, cols), (rows, cols, vocab), (vocab, cols, rows))
        found = [gemm.predict(device, dtype, 1, *shape) for shape in shapes]
    seconds = np.sum([each.seconds for each in found], axis=0)
    return Prediction(
        seconds=seconds,
        error=np.max([each.error for each in found], axis=0),
        extrapolated=np.ones_like(seconds, dtype=np.bool_),
    )


def _written_B(dtype: str, usual_B: float) -> float:
    return WRITES_B.get(dtype, usual_B)
