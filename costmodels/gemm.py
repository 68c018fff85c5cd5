"""Matrix products: tiles in waves over the multiprocessors, or operands through memory, whichever is slower.

`seconds` is the model; its parameters (`costmodels.gemm_parameters`) are fitted to measurements by `costmodels.fit.gemm`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from costmodels.arithmetic import Format, format_of
from costmodels.fitted import load
from costmodels.gemm_parameters import TYPICAL, Parameters, bands, keys, lookup
from costmodels.prediction import Floats, Prediction
from costmodels.ranges import outside
from costmodels.specs import DeviceSpec

TILES = np.array(
    [(256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64), (32, 32), (8, 64)],
    dtype=np.float64,
)
"""(tiles, 2) output tiles that libraries have kernels for, rows and columns."""

EDGES = 2.0 * TILES[:, 0] * TILES[:, 1] / TILES.sum(axis=1)
"""(tiles,) harmonic means of rows and columns: multiplications for each operand that a multiprocessor loads."""

SPLITS = (1.0, 2.0, 4.0, 8.0)
"""Into how many parts k is cut so that a small output fills the device."""

K_STEP = 32.0
BOARD_W, BOARD_SHARE = 15.0, 0.2
"""Assumption: power of a board that does not go into arithmetic, whatever it does: watts, and at most what share."""

POWER_LAW = 0.75
"""Assumption: power of the power by which the rate falls: voltage falls with the clock, down to a limit, so between 1/3 and 1."""

PROCESS_ENERGY = {"ampere": 1.4, "cdna": 1.4, "cdna2": 1.4, "volta": 3.2, "turing": 3.2, "pascal": 2.8}
"""Assumption: energy of an operation over that in a 5 nm class process, by architecture (after what foundries say of a shrink: N5
30 % below N7, N7 65 % below 16 nm, 12 nm a quarter below). Pascal's voltages are lower: a P4 keeps 810 of 1114 MHz at 75 W."""

KIND_ENERGY = {"vector": 6.0, "fp8": 0.5, "fp8_block": 0.5, "int8": 0.5, "nvfp4": 0.25}
"""Assumption: energy of a FLOP over that of 16-bit matrix units, where a fit starts: units of half the width take half."""

PANEL = 128.0
PAGES = 32768.0
SMALL_L2_B = 4e6
LIBRARIES = ("cublas", "pytorch", "sglang", "trtllm", "vllm")
TIMED = ("pytorch",)
"""Libraries whose measurements hold what a host's timer adds; no program pays it, so that it is left out where none is named."""


class Widths(Protocol):
    """Bytes of an element of each operand, and whether activations are narrowed first; arrays when rows differ."""

    @property
    def a_B(self) -> Any: ...
    @property
    def b_B(self) -> Any: ...
    @property
    def c_B(self) -> Any: ...
    @property
    def quantises(self) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the model needs of the data sheet: floats for one device or (rows,) arrays for many."""

    flop_per_s: Any
    B_per_s: Any
    units: Any
    l2_B: Any
    launch_s: Any
    power_W: Any  # for arithmetic, as if by 16-bit matrix units in a 5 nm class process


def predict(
    device: DeviceSpec,
    dtype: str,
    batch: ArrayLike,
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    *,
    library: str | None = None,
    fitted: Mapping[str, Any] | None = None,
    widths: Widths | None = None,
) -> Prediction:
    """C[m, n] = A[m, k] B[k, n], `batch` times at once; sizes broadcast, the result has their shape.

    `dtype` is a key of `costmodels.arithmetic.FORMATS` or one of its aliases; another one gives NaN. `library` is one of
    `LIBRARIES`; None stands for one between those that were measured (effects of libraries left out), which is the most
    representative, not the fastest. `fitted` is the content of `costmodels/fitted/gemm.yaml` unless given, `widths` are those of
    `dtype`.
    """
    sizes = [np.asarray(x, dtype=np.float64) for x in (batch, m, n, k)]
    shape = np.broadcast_shapes(*(s.shape for s in sizes))
    form = format_of(dtype, device)
    if form is None:
        return Prediction.plain(np.full(shape, np.nan))
    known = _default(device, dtype, library) if fitted is None else _known(device, form, library, fitted)
    table = load("gemm") if fitted is None else fitted
    inside, beyond, seen = known.bands
    timed = library in TIMED
    far = np.broadcast_to(outside(table, form.kind, batch=sizes[0], m=sizes[1], n=sizes[2], k=sizes[3]), shape)
    return Prediction(
        seconds=np.broadcast_to(seconds(known.hardware, widths or form, known.parameters, *sizes, timed=timed), shape),
        error=np.where(far, beyond, inside),
        extrapolated=far | (not seen),
    )


def gemm_seconds(device: DeviceSpec, dtype: str, batch: ArrayLike, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> Floats:
    """Seconds alone, as `predict`."""
    return predict(device, dtype, batch, m, n, k).seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    hardware: Hardware
    parameters: Parameters
    bands: tuple[float, float, bool]


@lru_cache(maxsize=1024)
def _default(device: DeviceSpec, dtype: str, library: str | None) -> _Known:
    form = format_of(dtype, device)
    assert form is not None
    return _known(device, form, library, load("gemm"))


def _known(device: DeviceSpec, form: Format, library: str | None, fitted: Mapping[str, Any]) -> _Known:
    """A device's own `efficiency` entries of the names in `TYPICAL` come before what was fitted."""
    where = keys(device, form.kind, library)
    own = {name: float(value) for name, value in device.efficiency.items() if name in TYPICAL}
    inside, beyond, seen = bands(fitted, form.kind, where)
    if form.peak == "tf32":  # shares what was fitted to 16 bits
        inside, seen = beyond, False
    return _Known(
        hardware=hardware(device, form),
        parameters={**lookup(fitted["parameters"], where), **own},
        bands=(inside, beyond, seen),
    )


def hardware(device: DeviceSpec, form: Format) -> Hardware:
    """The data sheet as the model reads it; a device that states no power is not held back by it."""
    power_W = device.power_W if device.kind == "gpu" and device.power_W else np.inf
    energy = PROCESS_ENERGY.get(device.architecture, 1.0) * KIND_ENERGY.get(form.kind, 1.0)
    return Hardware(
        flop_per_s=device.flop_per_s[form.peak],
        B_per_s=device.memory_B_per_s,
        units=float(device.units or 1),
        l2_B=device.l2_B or SMALL_L2_B,
        launch_s=device.launch_s,
        power_W=(power_W - min(BOARD_W, BOARD_SHARE * power_W)) / energy,
    )


def seconds(
    hw: Hardware, form: Widths, p: Parameters, batch: Floats, m: Floats, n: Floats, k: Floats, *, timed: Any = False
) -> Floats:
    """Launch (and timer) + (compute^sharp + memory^sharp)^(1/sharp) + narrowing of activations; arguments broadcast."""
    compute = _compute_s(hw, p, batch, m, n, k)
    memory = _memory_s(hw, form, p, batch, m, n, k)
    sharp = 1.0 + p["sharp"]
    slower, faster = np.maximum(compute, memory), np.minimum(compute, memory)
    work = slower * (1.0 + (faster / slower) ** sharp) ** (1.0 / sharp)
    narrowing = form.quantises * p["narrow"] * (2.0 + form.a_B) * batch * m * k / (hw.B_per_s * p["stream"])
    return np.asarray(hw.launch_s * (p["launch"] + timed * p["timer"]) + work + narrowing, dtype=np.float64)


def _compute_s(hw: Hardware, p: Parameters, batch: Floats, m: Floats, n: Floats, k: Floats) -> Floats:
    """The fastest of tile shapes and splits of k, slowed by heat and by very wide results.

    A small tile loads more operands for each multiplication; a pipeline takes `fill` of k to fill and drain; an incomplete wave
    takes as long as a whole one, or its share of one where `wave` is small.
    """
    per_unit = hw.flop_per_s * np.minimum(p["peak"], 1.0) / hw.units
    half = _last(p["half"])
    share = EDGES / (EDGES + half) * (EDGES.max() + half) / EDGES.max()
    each = 2.0 * TILES.prod(axis=1) / (_last(per_unit) * share)
    tiles = _last(batch / hw.units) * np.ceil(_last(m) / TILES[:, 0]) * np.ceil(_last(n) / TILES[:, 1])
    whole = _last(p["wave"] / (1.0 + p["wave"]))
    sums = 8.0 * batch * m * n / (hw.B_per_s * p["stream"] * p["cache"])
    best = np.full(np.broadcast_shapes(np.shape(sums), np.shape(k)), np.inf)
    for splits in SPLITS:
        x = tiles * splits
        waves = np.maximum(x + whole * (np.ceil(x) - x), 1.0)
        spent = (waves * each).min(axis=-1) * _depth(p, k / splits)
        if splits > 1.0:
            spent = spent + splits * sums + p["join"] * hw.launch_s
        best = np.minimum(best, spent)
    far = n / PAGES
    return np.asarray(best * _throttled(hw, p, best) * (1.0 + p["wide"] * far / np.sqrt(1.0 + far * far)))


def _last(x: Any) -> Any:
    """With an axis at the end, along which tiles differ."""
    return np.asarray(x)[..., None]


def _depth(p: Parameters, k: Floats) -> Floats:
    """Elements of k that a tile takes the time of: whole steps, at least about `least`, and `fill`."""
    return np.asarray((np.ceil(k / K_STEP) ** 12 + (p["least"] / K_STEP) ** 12) ** (1.0 / 12.0) * K_STEP + p["fill"])


def _throttled(hw: Hardware, p: Parameters, cold: Floats) -> Floats:
    """How much longer than the `cold` seconds a product takes on a device whose power does not sustain its clock.

    Power is regulated over milliseconds: a product of `heat_s` meets half of the loss.
    """
    powered = (hw.power_W / (p["energy_J"] * hw.flop_per_s)) ** POWER_LAW
    loss = (1.0 + (p["peak"] / powered) ** 8) ** 0.125 - 1.0
    return np.asarray(1.0 + loss * cold / (cold + p["heat_s"]))


def _memory_s(hw: Hardware, form: Widths, p: Parameters, batch: Floats, m: Floats, n: Floats, k: Floats) -> Floats:
    """Operands and result once through memory, or the L2 cache as far as they fit; panels again where they do not."""
    a, b, c = form.a_B * batch * m * k, form.b_B * batch * k * n, form.c_B * batch * m * n
    once = a + b + c
    fits = 1.0 / (1.0 + (once / (p["resident"] * hw.l2_B)) ** 2)
    edge = PANEL * np.sqrt(hw.units)
    again = p["reread"] * (a * np.maximum(n / edge - 1.0, 0.0) + b * np.maximum(m / edge - 1.0, 0.0))
    moved = once * (1.0 - fits + fits / p["cache"]) + again * (1.0 - fits)
    return np.asarray(moved / (hw.B_per_s * p["stream"]))
