"""Times that `windtunnel calibrate` measured on this machine, read between and beyond the sizes it tried.

A device's `measured.kernels` maps a kernel's name to points [size, size, ..., seconds], the sizes those of `SIZES`;
`measured.in_model` is how much longer kernels take inside a model than alone, where every point was measured. A link's
`measured` maps a collective to numbers of ranks to points [bytes, seconds].
"""

from functools import lru_cache
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels import Kernel, flops, nbytes
from costmodels.kernels import kernel as make
from costmodels.specs import DeviceSpec, LinkSpec

Floats = NDArray[np.float64]

SIZES: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention": ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "causal"),
    "embedding": ("rows", "cols", "vocab"),
    "cross_entropy": ("rows", "vocab"),
    "adamw": ("params",),
    "copy": ("elements",),
}
"""Sizes of each kernel in the order of a point; every other kernel has rows and cols. A backward has those of its forward."""

NEAREST = 3  # power of the distance by which points count


def sizes_of(name: str) -> tuple[str, ...]:
    """Names of the sizes in a point of kernel `name`."""
    return SIZES.get(name.removesuffix("_backward"), ("rows", "cols"))


def kernel_seconds(kernel: Kernel, device: DeviceSpec) -> float | None:
    """Seconds of all launches of `kernel`, None where the device's tables have nothing like it.

    Between points, time for each unit of work (FLOPs of products, bytes of everything else) is averaged with weights that fall
    with the distance of the logarithms of the sizes; beyond them the nearest points decide, so that time grows with work.
    """
    tables = device.measured.get("kernels")
    if not isinstance(tables, dict) or kernel.name not in tables:
        return None
    places, rates = _table(device, kernel.name, kernel.dtype)
    shape = dict(kernel.shape)
    batch = shape.pop("batch", 1) if kernel.name == "gemm" else 1
    here = _place(kernel.name, tuple(float(shape[s]) for s in sizes_of(kernel.name)))
    distance = np.abs(places - here).sum(axis=1)
    weights = 1.0 / np.maximum(distance, 1e-9) ** NEAREST
    per_work = exp(float((weights * rates).sum() / weights.sum()))
    once = make(kernel.name, kernel.dtype, **shape)
    in_model = device.measured.get("in_model", 1.0)
    assert isinstance(in_model, float)
    return kernel.count * batch * _work(once) * per_work * in_model


def _work(kernel: Kernel) -> float:
    products = kernel.name in ("gemm", "attention", "attention_backward")
    return flops(kernel) if products else nbytes(kernel)


def _place(name: str, sizes: tuple[float, ...]) -> Floats:
    """Coordinates in which near means alike: sizes that only multiply each other count as their product."""
    if name.startswith("attention"):
        batch, heads, _, q_len, kv_len, head_dim, causal = sizes
        return np.array([log(batch * heads), log(q_len), log(kv_len), log(head_dim), causal])
    if sizes_of(name) == ("rows", "cols"):
        return np.array([log(sizes[0] * sizes[1])])
    return np.array([log(size) for size in sizes])


@lru_cache(maxsize=1024)
def _table(device: DeviceSpec, name: str, dtype: str) -> tuple[Floats, Floats]:
    """Places of the measured points and the logarithms of their seconds for each unit of work."""
    tables = device.measured["kernels"]
    assert isinstance(tables, dict)
    places, rates = [], []
    for *sizes, seconds in tables[name]:
        point = make(name, dtype, **{s: int(v) for s, v in zip(sizes_of(name), sizes, strict=True)})
        places.append(_place(name, tuple(sizes)))
        rates.append(log(seconds / _work(point)))
    return np.array(places), np.array(rates)


def link_seconds(link: LinkSpec, op: str, n_ranks: int, nbytes: int) -> float | None:
    """Seconds of `op` over a message of `nbytes` among `n_ranks`, None where the link's tables have nothing like it.

    Linear between points; above the largest at the rate of the last two, below the smallest as that one.
    """
    by_ranks = link.measured.get(op)
    points = by_ranks.get(n_ranks, by_ranks.get(str(n_ranks))) if isinstance(by_ranks, dict) else None
    if not points:
        return None
    sizes, seconds = np.array(points, dtype=np.float64).T
    if nbytes <= sizes[-1] or len(sizes) == 1:
        return float(np.interp(nbytes, sizes, seconds))
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
    return float(seconds[-1] + max(slope, 0.0) * (nbytes - sizes[-1]))
