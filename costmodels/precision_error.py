"""How much noise a precision adds: variance of rounding, of products of rounded tensors, and weight-only measures beside them.

Stochastic rounding to a grid of step q leaves a value x where it is on average, and adds q^2 s (1 - s), with s the place of x
between its two neighbours. Where s is uniform that is q^2/6 (round to nearest: q^2/12; the factor is the same for every operator
and does not change what is compared). The step is the scale of a fixed-point format, and 2^e eps of a floating-point one for values
of exponent e.
"""

from math import floor, frexp, log2

import numpy as np
from numpy.typing import NDArray

LEVELS = 127
"""Steps on each side of zero of symmetric int8: scale = amax/127."""

MANTISSA = {"fp8": 3, "float16": 10, "bfloat16": 7, "tf32": 10}
"""Stored bits of the mantissa; fp8 is e4m3, whose range is scaled to the tensor's amax."""

RELEASED_EXPONENT = 5  # exponents are cut off there
RELEASED_BITS = {p: bits - 1 for p, bits in MANTISSA.items()}
"""The released code takes 2^-9 for float16; the other formats follow in the same distance."""

Floats = NDArray[np.float64]


def rounding_variance(precision: str, amax: float, rms: float) -> float:
    """Mean variance of one element of a tensor that is rounded to `precision`.

    Fixed point S^2/6 with S = amax/127; floating point (2^e eps)^2/6 with e the exponent of the tensor's root mean square and eps
    = 2^-mantissa bits. 0 for float32, against which all is measured, and for a tensor of zeros.
    """
    if precision == "float32" or amax == 0 or rms == 0:
        return 0.0
    step = amax / LEVELS if precision == "int8" else 2.0 ** (floor(log2(rms)) - MANTISSA[precision])
    return float(step * step / 6)


def product_variance(terms: float, variance_a: float, power_a: float, variance_b: float, power_b: float) -> float:
    """Variance that rounding both operands adds to a product, summed over its elements.

    A result z = sum over k of a_k b_k has, with independent noise of mean 0 and variance s_a, s_b on each element, the variance
    ||b||^2 s_a + ||a||^2 s_b (the product of both noises, s_a s_b, is left out: it is of second order). Summed over all results
    every multiplication counts once: `terms` (mean b^2 s_a + mean a^2 s_b), with `terms` the number of multiplications and `power`
    the mean square of an operand. So convolutions of any stride and groups, linear layers and batched products share one formula.
    """
    return terms * (power_b * variance_a + power_a * variance_b)


def released_exponent(ratio: float) -> int:
    """|exponent| of float16(ratio) = m 2^e with m in [0.5, 1), at most 5: QSync's released code."""
    with np.errstate(over="ignore"):
        value = float(np.float16(ratio))
    if not np.isfinite(value):
        return RELEASED_EXPONENT
    return min(abs(frexp(value)[1]), RELEASED_EXPONENT)


def released_fixed(norm_a: float, scale_b: float, n_b: float, norm_b: float, scale_a: float, n_a: float) -> float:
    """Forward variance of int8 as released: (||a|| S_b^2 D_b + ||b|| S_a^2 D_a)/6, norms not squared."""
    return (norm_a * scale_b**2 * n_b + norm_b * scale_a**2 * n_a) / 6


def released_float(precision: str, *pairs: tuple[float, float, int]) -> float:
    """Variance of a floating-point format as released: sum of norm x elements x exponent, times eps^2/6 (the exponent plain)."""
    step = 2.0 ** -RELEASED_BITS[precision]
    return step * step / 6 * sum(norm * n * exponent for norm, n, exponent in pairs)


def weight_curvature(weight: Floats) -> float:
    """|mean second difference of a weight tensor| along its dimensions: what QSync's released HESS takes for a Hessian's trace.

    Differences are numpy's gradient applied twice. It is no Hessian of the loss. Dimensions of one element have none.
    """
    parts = [np.gradient(np.gradient(weight, axis=d), axis=d) for d in range(weight.ndim) if weight.shape[d] > 1]
    return float(abs(sum(part.mean() for part in parts))) if parts else 0.0


def weight_shift(weight: Floats, precision: str) -> float:
    """log2(| sum |Q x| - sum |x| | / sum |x| + 1) of a weight rounded to `precision` (WVAR, after Zhang et al., CVPR 2020)."""
    size = float(np.abs(weight).sum())
    if size == 0:
        return 0.0
    return float(np.log2(abs(float(np.abs(rounded(weight, precision)).sum()) - size) / size + 1))


def rounded(values: Floats, precision: str) -> Floats:
    """`values` rounded to the nearest number of a precision, with the scale of the whole tensor; overflow is left out."""
    amax = float(np.abs(values).max(initial=0.0))
    if precision == "float32" or amax == 0:
        return values
    if precision == "int8":
        scale = amax / LEVELS
        return np.rint(values / scale) * scale
    _, exponent = np.frexp(values)
    step = np.exp2(exponent - 1.0 - MANTISSA[precision])
    return np.rint(values / step) * step
