"""Generation by a plain PyTorch loop on a device that `windtunnel calibrate` measured: prompts read at once, then token by token.

The host starts every operator and waits for it, so that a decode step is what its modules take beside their products, and the
products, the cache and the sums of tensor parallelism on top:

    step = step_s + layers (layer_s + rows hidden element_s) + in_step (products of few rows + cache moved) + sums + draws

A device's `measured.eager` holds

    step_s, layer_s       a step, and each layer of it, where the work is next to nothing
    split_layer_s         a layer of a step under tensor parallelism, with DTensor's host time, without its sums
    split_forward_s       what tensor parallelism adds to a layer of a whole pass, and split_backward_s
    products              points [rows, seconds of a multiply-add]: products whose time is that of reading their weight
    cache                 points [numbers of keys and values in a layer, seconds]: appended to and attended
    all_reduce            points [bytes, seconds] by number of ranks, between two products
    draw_s                a random number of sampling
    in_step               how much longer products and cache take inside a model than one by one
    element_s             a number of a row in a layer: norms, rotations, activations, sums
    kernels               what kernels of a whole pass take in `alone`, as a share of what they take with every core busy
    alone                 those of these numbers that are others where the other ranks of the host wait (see `beside`)
    call                  points [bytes, seconds]: a call of the single controller, from the end of the call before it
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from costmodels import measured
from costmodels.errors import DataError, Problem
from costmodels.prediction import Floats
from costmodels.specs import DeviceSpec
from costmodels.transformer import TransformerShape
from costmodels.transformer_kernels import Slice, attention_block, attention_core, embedding, mlp_block

Eager = Mapping[str, object]
NEEDED = (
    "step_s",
    "layer_s",
    "split_layer_s",
    "split_forward_s",
    "split_backward_s",
    "products",
    "cache",
    "all_reduce",
    "draw_s",
    "in_step",
    "element_s",
    "call",
)
SUMS = 2
"""All-reduces of a layer: after attention and after the MLP (Shoeybi et al. 2019)."""


def eager_of(device: DeviceSpec) -> Eager | None:
    """What was measured, None where nothing was. Raises `DataError` for a calibration that lacks some of it."""
    found = cast(Eager | None, device.measured.get("eager"))
    lacking = [name for name in NEEDED if found is not None and name not in found]
    if lacking:
        given, advice = f"no {', '.join(lacking)}", "Run `windtunnel calibrate` again."
        problem = Problem(f"{device.name}: measured.eager", given, "all that a calibration measures", advice)
        raise DataError("a device was calibrated by an older version", [problem])
    return found


def beside(device: DeviceSpec, share: float) -> DeviceSpec:
    """The device while a `share`, 0 to 1, of the host's other ranks computes and the others wait: between what was measured of one
    process alone and with every core busy. The device itself where one process alone was not measured."""
    eager = eager_of(device)
    alone = cast(Eager | None, eager.get("alone")) if eager is not None else None
    if eager is None or alone is None or share >= 1.0:
        return device
    mixed = {name: _mixed(eager.get(name, 1.0), quiet, share) for name, quiet in alone.items()}
    return replace(device, measured={**device.measured, "eager": {**eager, **mixed}})


def _mixed(busy: object, quiet: object, share: float) -> object:
    """Numbers, or points of the same sizes, so far from `quiet` to `busy`."""
    found = np.asarray(quiet) + share * (np.asarray(busy, dtype=np.float64) - np.asarray(quiet))
    return found.tolist()


def decode_s(device: DeviceSpec, shape: TransformerShape, *, tp: int, batch: ArrayLike, kv_len: ArrayLike) -> Floats:
    """Seconds of a step that adds a token to each of `batch` sequences of `kv_len` tokens (arrays broadcast)."""
    eager, rows = _of(device), np.asarray(batch, dtype=np.float64)
    work = rows * _weights(shape, tp) * _between(eager, "products", rows)
    kept = 2.0 * rows * np.asarray(kv_len, dtype=np.float64) * max(shape.kv_heads / tp, 1.0) * shape.head_dim
    moved = shape.layers * _beyond(eager, "cache", kept)
    sums = SUMS * shape.layers * _sum_s(eager, tp, 4.0 * rows * shape.hidden) if tp > 1 else 0.0
    passed = rows * shape.layers * shape.hidden * _number(eager, "element_s")
    drawn = rows * shape.vocab * _number(eager, "draw_s")
    return np.asarray(_host_s(eager, shape, tp) + _number(eager, "in_step") * (work + moved) + passed + sums + drawn)


def prefill_s(device: DeviceSpec, shape: TransformerShape, *, tp: int, batch: int, q_len: int) -> float:
    """Seconds until `batch` prompts of `q_len` tokens have their first token: a forward pass, with a head for the last tokens."""
    eager = _of(device)
    part = Slice(sequences=batch, seq_len=q_len, precision="float32", tp=tp, fused_projections=False)
    layer = attention_block(shape, part, "none") + attention_core(shape, part, "none") + mlp_block(shape, part, "none")
    kernels = (embedding(shape, part) + layer * shape.layers).forward
    each = [measured.kernel_seconds(k, device) for k in kernels]
    seconds = float(cast(float, eager.get("kernels", 1.0))) * sum(s for s in each if s is not None)
    head = batch * shape.hidden * shape.vocab * float(_between(eager, "products", np.array(float(batch))))
    sums = SUMS * shape.layers * float(_sum_s(eager, tp, np.array(4.0 * part.rows * shape.hidden))) if tp > 1 else 0.0
    split = float(split_s(device, shape.layers, forward=True)) if tp > 1 else 0.0
    return seconds + head + sums + split + batch * shape.vocab * _number(eager, "draw_s")


def host_s(device: DeviceSpec, shape: TransformerShape, *, tp: int = 1) -> float:
    """Seconds of a step of next to no work."""
    return _host_s(_of(device), shape, tp)


def call_s(device: DeviceSpec, nbytes: ArrayLike) -> Floats:
    """Seconds from the end of a call to the start of the next that reads `nbytes` of what it made; none where nobody measured."""
    eager = eager_of(device)
    if eager is None:
        return np.zeros(np.shape(nbytes))
    return _between(eager, "call", np.asarray(nbytes, dtype=np.float64))


def split_s(device: DeviceSpec, layers: ArrayLike, *, forward: bool) -> Floats:
    """What tensor parallelism adds to the host's time for a pass through `layers`, beside its sums; none where nobody measured."""
    eager = eager_of(device)
    each = _number(eager, "split_forward_s" if forward else "split_backward_s") if eager is not None else 0.0
    return np.asarray(layers, dtype=np.float64) * each


def _of(device: DeviceSpec) -> Eager:
    found = eager_of(device)
    assert found is not None
    return found


def _host_s(eager: Eager, shape: TransformerShape, tp: int) -> float:
    return _number(eager, "step_s") + shape.layers * _number(eager, "split_layer_s" if tp > 1 else "layer_s")


def _weights(shape: TransformerShape, tp: int) -> float:
    """Multiply-adds of a token: the layers' matrices on a rank, and the head, which every rank has whole."""
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    layer = attention + (3 if shape.gated else 2) * shape.hidden * shape.ffn
    return shape.layers * layer / tp + shape.hidden * shape.vocab


def _number(eager: Eager, name: str) -> float:
    return float(cast(float, eager[name]))


def _between(eager: Eager, name: str, at: Floats) -> Floats:
    """From the points of a table: linear between them, as the last two beyond, as the first below."""
    return _line(cast(list[list[float]], eager[name]), at)


def _beyond(eager: Eager, name: str, at: Floats) -> Floats:
    """The same without what the first point, of next to no work, takes."""
    points = cast(list[list[float]], eager[name])
    return np.maximum(_line(points, at) - points[0][1], 0.0)


def _sum_s(eager: Eager, tp: int, nbytes: Floats) -> Floats:
    tables = cast(Mapping[object, list[list[float]]], eager["all_reduce"])
    points = tables.get(tp, tables.get(str(tp))) or next(iter(tables.values()))
    return _line(points, nbytes)


def _line(points: list[list[float]], at: Floats) -> Floats:
    sizes, seconds = np.array(points, dtype=np.float64).T
    inside = np.interp(at, sizes, seconds)
    if len(sizes) == 1:
        return np.asarray(inside)
    slope = max((seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]), 0.0)
    return np.asarray(inside + slope * np.maximum(at - sizes[-1], 0.0))
