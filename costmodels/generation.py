"""Generation as kernels of a plan: reading prompts, decode steps, and what stands around them. Their time is that of `serving`.

    prefill/vllm    count x (batch prompts of q_len tokens)
    decode/vllm     count steps of batch sequences that are kv_len tokens long
    host_copy       elements bytes over a device's link to its host
    engine_start    what an engine needs before its first step, beside copying weights
    controller_call elements bytes that a call of a single controller reads; known where `windtunnel calibrate` measured it
    split_layers    elements layers forward through modules of tensor parallelism: what they add to the host's time, likewise;
                    and split_layers_backward

Both of the first two name the engine and have the sizes of the model and its tp and pp in their shape, so that a plan says all.
They have `beside_percent` where fewer than all of the host's other ranks compute meanwhile, which matters where ranks share its
memory.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from costmodels import catalog, generation_eager, serving
from costmodels.generation_work import CALL, DECODE, ENGINE_START, HOST_COPY, LENGTH, PREFILL, SPLIT, SPLIT_BACKWARD
from costmodels.kernels import Kernel, kernel
from costmodels.prediction import Floats, Prediction
from costmodels.serving import Served
from costmodels.serving_parts import Place
from costmodels.specs import DeviceSpec
from costmodels.transformer import TransformerShape

ENGINE_START_S = 2.4
"""Between training and the first prompt: memory handed from one allocator to another, a cache laid out, weights bound. Assumption:
what the transition of a 7B model inside a host takes beside its copies (HybridFlow, figure 14: 2.7 s), for all engines."""

PRECISION = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
SIZES = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab")
BESIDE = "beside_percent"
SHAPE = (*SIZES, "gated", "tp", "pp", BESIDE)


def served_by(engine: str, shape: TransformerShape, device: DeviceSpec, dtype: str, tp: int, pp: int) -> Served:
    """A copy of a model for `serving`; raises `ValueError` for a dtype that serving does not know."""
    return serving.served(shape, device, PRECISION.get(dtype, dtype), tp, pp, engine=engine)


class Split(NamedTuple):
    """Degrees of the copy of a model that generates, and the share of its host's other ranks that compute meanwhile."""

    tp: int
    pp: int
    beside: float = 1.0


def prefill(engine: str, shape: TransformerShape, dtype: str, split: Split, *, batch: int, q_len: int) -> Kernel:
    """The kernel of reading `batch` prompts of `q_len` tokens at once."""
    return kernel(f"{PREFILL}/{engine}", dtype, batch=batch, q_len=q_len, **_sizes(shape, split))


def decode(
    engine: str, shape: TransformerShape, dtype: str, split: Split, *, batch: int, kv_len: int, steps: int
) -> Kernel:
    """The kernel of `steps` steps of `batch` sequences of `kv_len` tokens."""
    return kernel(f"{DECODE}/{engine}", dtype, count=steps, batch=batch, kv_len=kv_len, **_sizes(shape, split))


def host_copy(nbytes: float) -> Kernel:
    """The kernel of copying between a device and its host."""
    return kernel(HOST_COPY, "int8", elements=round(nbytes))


def engine_start() -> Kernel:
    """The kernel of an engine's start."""
    return kernel(ENGINE_START, "int8", elements=0)


def controller_call(nbytes: int) -> Kernel:
    """The kernel of a call that reads so many bytes of earlier calls."""
    return kernel(CALL, "int8", elements=nbytes)


def split_layers(layers: int, *, forward: bool = True) -> Kernel:
    """The kernel of a pass through so many layers under tensor parallelism."""
    return kernel(SPLIT if forward else SPLIT_BACKWARD, "int8", elements=layers)


def decode_s(one: Served, batch: Floats, kv_len: Floats) -> Floats:
    """Seconds of steps, as the device was measured itself, otherwise as `serving` has them; arrays of one shape."""
    if generation_eager.eager_of(one.place.device) is None:
        return serving.decode(one, batch, kv_len).seconds
    return generation_eager.decode_s(one.place.device, one.shape, tp=one.place.tp, batch=batch, kv_len=kv_len)


def prefill_s(one: Served, batch: Floats, q_len: Floats) -> Floats:
    """Seconds of reading prompts, likewise."""
    if generation_eager.eager_of(one.place.device) is None:
        return serving.prefill(one, batch, q_len).seconds
    place = one.place
    each = [
        generation_eager.prefill_s(place.device, one.shape, tp=place.tp, batch=round(b), q_len=round(q))
        for b, q in np.broadcast(batch, q_len)
    ]
    return np.array(each).reshape(np.broadcast(batch, q_len).shape)


def known_s(kernel: Kernel, device: DeviceSpec) -> float | None:
    """Seconds of all launches of a kernel of generation where the device was measured itself, None otherwise."""
    if generation_eager.eager_of(device) is None:
        return None
    shape = {name: np.array([size]) for name, size in kernel.shape}
    return kernel.count * float(predict(device, kernel.name, kernel.dtype, shape).seconds[0])


def predict(device: DeviceSpec, name: str, dtype: str, s: Mapping[str, ArrayLike]) -> Prediction:
    """Seconds of one launch; sizes are numbers or arrays of one shape."""
    kind, _, engine = name.partition("/")
    if kind == HOST_COPY:
        return Prediction.plain(host_copy_s(device, s["elements"]))
    if kind == ENGINE_START:
        return Prediction.plain(np.full(np.shape(s["elements"]), ENGINE_START_S))
    if kind == CALL:
        return Prediction.plain(generation_eager.call_s(device, s["elements"]))
    if kind in (SPLIT, SPLIT_BACKWARD):
        return Prediction.plain(generation_eager.split_s(device, s["elements"], forward=kind == SPLIT))
    sizes = {BESIDE: np.full(np.shape(s["batch"]), 100), **s}
    shapes = np.stack([np.atleast_1d(np.asarray(sizes[name], dtype=np.int64)) for name in SHAPE])
    known, of_row = np.unique(shapes, axis=1, return_inverse=True)
    batch, length = (np.atleast_1d(np.asarray(s[n], dtype=np.float64)) for n in ("batch", LENGTH[kind]))
    seconds, error, far = np.empty(batch.shape), np.empty(batch.shape), np.empty(batch.shape, dtype=np.bool_)
    for i, column in enumerate(known.T.tolist()):
        rows = of_row.reshape(-1) == i
        *column, percent = column
        one = _served(engine, generation_eager.beside(device, percent / 100.0), dtype, column)
        if generation_eager.eager_of(device) is not None:
            seconds[rows] = (decode_s if kind == DECODE else prefill_s)(one, batch[rows], length[rows])
            error[rows], far[rows] = np.nan, False
            continue
        found = (serving.decode if kind == DECODE else serving.prefill)(one, batch[rows], length[rows])
        seconds[rows], error[rows], far[rows] = found.seconds, found.error, found.extrapolated
    shape = np.shape(s["batch"])
    return Prediction(seconds=seconds.reshape(shape), error=error.reshape(shape), extrapolated=far.reshape(shape))


def host_copy_s(device: DeviceSpec, nbytes: ArrayLike) -> Floats:
    """Seconds of a pinned copy over the device's link to its host; devices of a host have a link each (assumption)."""
    link = catalog.link(device.host_link or "pcie4")
    return np.asarray(np.asarray(nbytes, dtype=np.float64) / (link.B_per_s * link.efficiency), dtype=np.float64)


def _sizes(shape: TransformerShape, split: Split) -> dict[str, int]:
    sizes = {**{n: int(getattr(shape, n)) for n in SIZES}, "gated": int(shape.gated), "tp": split.tp, "pp": split.pp}
    return sizes if split.beside >= 1.0 else {**sizes, BESIDE: round(100 * split.beside)}


def _served(engine: str, device: DeviceSpec, dtype: str, column: list[int]) -> Served:
    *sizes, gated, tp, pp = column
    fields: dict[str, Any] = dict(zip(SIZES, sizes, strict=True))
    shape = TransformerShape(**fields, max_len=1 << 20, gated=bool(gated))
    return Served(
        shape=shape,
        place=Place(device=device, tp=tp, pp=pp),
        precision=served_by(engine, shape, device, dtype, tp, pp).precision,
        engine=serving.engine_of(engine),
    )
