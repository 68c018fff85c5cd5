"""Times that `windtunnel calibrate` measured on this machine, read between and beyond the sizes it tried.

A device's `measured.kernels` maps a kernel's name, or its name and dtype as in "gemm:int8", to points [size, size, ..., seconds];
a name alone is float32. `SIZES` says which sizes in which order.
`measured.in_model` is how much longer kernels take inside a model than alone, where these points were measured (those of
`AS_TRAINED` were not), and `measured.module_s` what the host takes to call a module of a pass forward: going back no modules are
called.
`measured.unawaited` is the share of those times that a rank takes itself, where the rest is waiting for slower ones.
`measured.sharing` is how much longer kernels take in processes that share cores and slept before; it counts where a cluster says
that they do.
`measured.operators` has points {size: ..., size: ..., seconds: ...} by the same names, which were measured inside a model
(`windtunnel calibrate --operators`): kernels of exactly these sizes take exactly that long. `measured.checkpoint`: see
`costmodels.checkpoint`. A link's `measured` maps a collective
to numbers of ranks to points [bytes, seconds].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from costmodels.checkpoint import is_checkpoint, measured_seconds
from costmodels.kernels import Kernel, flops, nbytes
from costmodels.kernels import kernel as make
from costmodels.specs import DeviceSpec, LinkSpec

Floats = NDArray[np.float64]
Shape = tuple[tuple[str, int], ...]

SIZES: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention": ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "causal"),
    "embedding": ("rows", "cols", "vocab"),
    "cross_entropy": ("rows", "vocab"),
    "adamw": ("params",),
    "copy": ("elements",),
}
"""Sizes of each kernel in the order of a point; every other kernel has rows and cols. A backward has those of its forward."""

KINDS = ("bits", "data", "narrowed", "causal")
"""Sizes that are none: kernels that differ in them are different kernels."""

NEAREST = 3  # power of the distance by which points count
FEWEST = 3  # points that tell how far off the others are

AS_TRAINED = frozenset({"adamw"})
"""Kernels that were measured as training runs them: after a pass, on all ranks at once, by whatever calls them."""


def sizes_of(name: str) -> tuple[str, ...]:
    """Names of the sizes in a point of kernel `name`."""
    return SIZES.get(name.removesuffix("_backward"), ("rows", "cols"))


def key_of(name: str, dtype: str) -> str:
    """The name of a kernel's table."""
    return name if dtype == "float32" else f"{name}:{dtype}"


def kernel_seconds(kernel: Kernel, device: DeviceSpec) -> float | None:
    """Seconds of all launches of `kernel`, None where the device's tables have nothing like it.

    What was measured inside a model at these sizes counts as it is. Otherwise, between points, time for each unit of work (FLOPs of
    products, bytes of everything else) is averaged with weights that fall with the distance of the logarithms of the sizes; beyond
    them the nearest points decide, so that time grows with work. Tables of kernels that were measured alone come first there.
    """
    if is_checkpoint(kernel.name):
        return measured_seconds(kernel, device)
    known = _inside(device, kernel.name, kernel.dtype).get(kernel.shape)
    if known is not None:
        return kernel.count * known
    shape = dict(kernel.shape)
    batch = shape.pop("batch", 1) if kernel.name == "gemm" else 1
    once = make(kernel.name, kernel.dtype, **shape)
    found = _points(device, once)
    if found is None:
        return None
    if not found.alone:
        return kernel.count * batch * _between(once, found)
    in_model, module_s = device.measured.get("in_model", 1.0), device.measured.get("module_s", 0.0)
    assert isinstance(in_model, float) and isinstance(module_s, float)
    longer = 1.0 if kernel.name in AS_TRAINED else in_model
    return kernel.count * (batch * _between(once, found) * longer + module_s * is_module(kernel, device))


def is_module(kernel: Kernel, device: DeviceSpec) -> bool:
    """Whether a kernel is one of those that the time for calling modules is put down to: what only a pass forward launches, since
    it goes back through another kernel. Products and sums of gradients are the same kernels in both."""
    tables = device.measured.get("kernels", {})
    assert isinstance(tables, dict)
    return key_of(f"{kernel.name}_backward", kernel.dtype) in tables


def spread(kernel: Kernel, device: DeviceSpec) -> float | None:
    """Within which share of it four of five measured points are of what the other points say, None where there are too few.

    How far off a time between points is to be expected; more than a time that was measured at that very size.
    """
    found = _points(device, make(kernel.name, kernel.dtype, **dict(kernel.shape)))
    if found is None or len(found.rates) < FEWEST:
        return None
    distance = np.abs(found.places[:, None] - found.places[None]).sum(axis=2)
    weights = 1.0 / np.maximum(distance, 1e-9) ** NEAREST
    np.fill_diagonal(weights, 0.0)
    off = np.exp(weights @ found.rates / weights.sum(axis=1) - found.rates) - 1.0
    return float(np.quantile(np.abs(off), 0.8))


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """What was measured of one kind of kernel: `places` (points, coordinates), `rates` (points,) logarithms of seconds for each
    unit of work, `sizes` the names that a place is made of; `alone`: not inside a model."""

    sizes: tuple[str, ...]
    places: Floats
    rates: Floats
    alone: bool


def _points(device: DeviceSpec, kernel: Kernel) -> Points | None:
    """The points that times between them come from: those of kernels that were measured alone, if there are any."""
    return _alone(device, kernel.name, kernel.dtype) or _around(
        device, kernel.name, kernel.dtype, tuple(size for size, _ in kernel.shape), _kind(kernel.shape)
    )


def _kind(shape: Shape) -> Shape:
    return tuple((size, number) for size, number in shape if size in KINDS)


@lru_cache(maxsize=1024)
def _alone(device: DeviceSpec, name: str, dtype: str) -> Points | None:
    tables = device.measured.get("kernels", {})
    assert isinstance(tables, dict)
    rows = tables.get(key_of(name, dtype))
    sizes = sizes_of(name)
    return _rated(name, dtype, sizes, [(tuple(row[:-1]), row[-1]) for row in rows], alone=True) if rows else None


@lru_cache(maxsize=1024)
def _around(device: DeviceSpec, name: str, dtype: str, sizes: tuple[str, ...], kind: Shape) -> Points | None:
    """Those inside models whose shape has the same sizes, and those in `KINDS` alike."""
    rows = [
        (tuple(float(n) for _, n in shape), seconds)
        for shape, seconds in _inside(device, name, dtype).items()
        if tuple(size for size, _ in shape) == sizes and _kind(shape) == kind
    ]
    return _rated(name, dtype, sizes, rows, alone=False) if rows else None


@lru_cache(maxsize=1024)
def _inside(device: DeviceSpec, name: str, dtype: str) -> dict[Shape, float]:
    """Seconds by shape, of what was measured inside models."""
    tables = device.measured.get("operators", {})
    assert isinstance(tables, dict)
    rows = tables.get(key_of(name, dtype), ())
    return {tuple(sorted((k, v) for k, v in row.items() if k != "seconds")): row["seconds"] for row in rows}


def _rated(
    name: str, dtype: str, sizes: tuple[str, ...], rows: Sequence[tuple[tuple[float, ...], float]], *, alone: bool
) -> Points:
    places = [_place(name, sizes, numbers) for numbers, _ in rows]
    shapes = [{s: int(n) for s, n in zip(sizes, numbers, strict=True)} for numbers, _ in rows]
    rates = [log(row[1] / _work(make(name, dtype, **shape))) for shape, row in zip(shapes, rows, strict=True)]
    return Points(sizes, np.array(places), np.array(rates), alone)


def _between(kernel: Kernel, found: Points) -> float:
    """Seconds of one launch from the points around it."""
    shape = dict(kernel.shape)
    here = _place(kernel.name, found.sizes, tuple(float(shape[s]) for s in found.sizes))
    weights = 1.0 / np.maximum(np.abs(found.places - here).sum(axis=1), 1e-9) ** NEAREST
    return _work(kernel) * exp(float((weights * found.rates).sum() / weights.sum()))


def _work(kernel: Kernel) -> float:
    products = kernel.name in ("gemm", "attention", "attention_backward")
    return flops(kernel) if products else nbytes(kernel)


def _place(name: str, sizes: tuple[str, ...], numbers: tuple[float, ...]) -> Floats:
    """Coordinates in which near means alike: sizes that only multiply each other count as their product."""
    if name.startswith("attention"):
        s = dict(zip(sizes, numbers, strict=True))
        logs = [log(s["batch"] * s["heads"]), log(s["q_len"]), log(s["kv_len"]), log(s["head_dim"])]
        return np.array([*logs, s.get("causal", 0.0)])
    if set(sizes) == {"rows", "cols"}:
        return np.array([log(numbers[0] * numbers[1])])
    return np.array([log(number) if number > 0 else -1.0 for number in numbers])


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


def sharing(device: DeviceSpec) -> float:
    """How much longer kernels take in processes that share the cores of `device`'s host; 1 where that was not measured."""
    return _factor(device, "sharing")


def unawaited(device: DeviceSpec) -> float:
    """What a rank takes for a pass by itself, as a share of what the slowest of all takes; 1 where that was not measured."""
    return _factor(device, "unawaited")


def _factor(device: DeviceSpec, name: str) -> float:
    found = device.measured.get(name, 1.0)
    assert isinstance(found, (int, float))
    return float(found)
