"""Seconds of generation: a prefill reads a prompt, a decode step adds one token to each sequence of a batch.

Both run the layers of a dense transformer on `tp` x `pp` devices. What the devices do is priced kernel by kernel (`parts`): linear
layers as `gemm.predict` has them, attention, elementwise work, two all-reduces a layer (Shoeybi et al. 2019), activations sent
between stages. An `Engine` says how far its kernels are from those prices, and what its host needs for a layer and for a step:
with small batches the host, not the device, decides how fast a Python program generates.

    step = smooth maximum of host_step_s + layers host_layer_s and the sum over kinds of factor_kind part_kind
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from costmodels import fitted as tables
from costmodels.prediction import Bools, Floats, Prediction
from costmodels.serving_parts import KINDS, PRECISIONS, Parts, Place, Precision, parts, precision_of
from costmodels.specs import DeviceSpec, LinkSpec
from costmodels.transformer import TransformerShape

SHARP = 4.0
"""How well host and devices overlap where they take the same time: infinite is perfectly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How a serving engine differs from the sum of its kernels; see the module. `decode` is a further factor of linear layers in
    decode steps. `fused`: attention never writes its scores to memory. `overlaps`: stages of a pipeline work on parts of the
    batch at a time."""

    name: str
    linear: float = 1.0
    decode: float = 1.0
    attention: float = 1.0
    stream: float = 1.0
    network: float = 1.0
    host_layer_s: float = 30e-6
    host_step_s: float = 200e-6
    fused: bool = True
    overlaps: bool = False


UNFUSED = ("fastertransformer", "ft", "tensorflow", "torchscript", "megatron", "huggingface", "colossal", "litgpt")
OVERLAPPING = ("triton", "fastertransformer", "colossal")
NAMES = (
    *("eff-ft", "torchscript", "tensorflow", "triton", "fastertransformer", "megatron", "vllm", "turbomind", "trt-llm"),
    *("qserve", "quarot", "litgpt", "colossal", "huggingface", "sglang", "tgi", "deepspeed", "llama.cpp"),
)
"""Words by which an engine is known, the first that its name holds."""
SPELLINGS = {
    "tf (tensorflow)": "tensorflow",
    "ft (": "ft",
    "lmdeploy": "turbomind",
    "tensorrt-llm": "trt-llm",
    "hf ": "huggingface",
    "transformers": "huggingface",
    "eager": "huggingface",
}
SERVERS = ("vllm", "turbomind", "trt-llm", "qserve", "fastertransformer")
"""Engines between which one that was not measured is taken to be: made for serving, not a framework's own loop."""


def engine_name(text: str) -> str:
    """The engine that a table's words mean; themselves where none is known."""
    wanted = text.strip().lower()
    for spelled, name in SPELLINGS.items():
        if wanted.startswith(spelled):
            return name
    if "faster" in wanted and "triton" in wanted:
        return "triton"
    return next((name for name in NAMES if name in wanted), wanted)


def engine_of(text: str, fitted: Mapping[str, Any] | None = None) -> Engine:
    """With its fitted factors; an engine that was not measured gets those of a typical one."""
    found = (tables.load("serving") if fitted is None else fitted)["parameters"]
    name = engine_name(text)
    values = found["engines"].get(name, found["typical"])
    return with_factors(name, values)


def with_factors(name: str, values: Mapping[str, Any]) -> Engine:
    """The engine of that name with the numbers of `values`."""
    numbers: dict[str, Any] = {key: float(value) for key, value in values.items()}
    return replace(plain_engine(name), **numbers)


def plain_engine(name: str) -> Engine:
    """Before any fit: what is known of how it is built."""
    return Engine(name=name, fused=name not in UNFUSED and name != "triton", overlaps=name in OVERLAPPING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One copy of a model on its devices, in a precision, run by an engine."""

    shape: TransformerShape
    place: Place
    precision: Precision
    engine: Engine


def served(
    shape: TransformerShape,
    device: DeviceSpec,
    precision: str = "bf16",
    tp: int = 1,
    pp: int = 1,
    *,
    engine: str = "vllm",
    network: LinkSpec | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Served:
    """A model as `prefill` and `decode` take it; `tp` ranks beyond a host of eight talk over `network`.

    Raises `ValueError` for a precision that is not known.
    """
    place = Place(device=device, tp=tp, pp=pp, network=network)
    return Served(shape=shape, place=place, precision=_known(precision), engine=engine_of(engine, fitted))


def prefill(
    one: Served, batch: ArrayLike, input_len: ArrayLike, *, fitted: Mapping[str, Any] | None = None
) -> Prediction:
    """Seconds until `batch` prompts of `input_len` tokens, read at once, have their first token (arrays broadcast)."""
    seconds = seconds_of(turns(one, batch, input_len, input_len), one.engine)
    return said(seconds, one.place.device.name, one.engine, fitted)


def decode(one: Served, batch: ArrayLike, kv_len: ArrayLike, *, fitted: Mapping[str, Any] | None = None) -> Prediction:
    """Seconds of one step that adds a token to each of `batch` sequences, which are `kv_len` tokens long by then."""
    seconds = seconds_of(turns(one, batch, np.ones_like(np.asarray(kv_len)), kv_len), one.engine)
    return said(seconds, one.place.device.name, one.engine, fitted)


def _known(precision: str) -> Precision:
    found = precision_of(precision)
    if found is None:
        raise ValueError(f"unknown precision {precision!r}; one of {', '.join(PRECISIONS)}")
    return found


def said(seconds: Floats, device: str, engine: Engine, fitted: Mapping[str, Any] | None) -> Prediction:
    """With the error of the engine's rows, or that of devices or engines left out."""
    found = tables.load("serving") if fitted is None else fitted
    error = found["error"]
    known = device in found["devices"] and engine.name in found["parameters"]["engines"]
    band = error["engines"].get(engine.name, error["unseen"]) if known else error["unseen"]
    return Prediction(
        seconds=seconds, error=np.full(seconds.shape, float(band)), extrapolated=np.full(seconds.shape, not known)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A way to run a pass: `times` (rows,) turns of `parts`, where it is possible; `decoding` rows add one token."""

    parts: Parts
    times: Floats
    layers: float | Floats
    decoding: Bools


def turns(
    one: Served,
    batch: ArrayLike,
    q_len: ArrayLike,
    kv_len: ArrayLike,
    *,
    causal: bool = True,
    tokens: ArrayLike | None = None,
) -> list[Turns]:
    """Ways to run a pass of `q_len` new tokens for each of `batch` sequences through all layers and the head.

    Its parts do not depend on the engine's factors. `tokens` are the rows of linear layers where they are fewer than batch x q_len
    because padding is left out.

    Stages that overlap take the batch in m parts. A prompt needs m + pp - 1 turns of a stage; decoding with a part for each stage
    keeps all stages busy and needs m. Where a batch has fewer sequences than parts, times are infinite.
    """
    place, engine = one.place, one.engine
    b, q, kv = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (batch, q_len, kv_len)))
    rows = b * q if tokens is None else np.broadcast_to(np.asarray(tokens, dtype=np.float64), b.shape)
    found = []
    for m in (1, place.pp, 2 * place.pp) if engine.overlaps and place.pp > 1 else (1,):
        part = np.maximum(b / m, 1.0)
        left = rows * part / b
        seconds = parts(one.shape, place, one.precision, part, q, kv, fused=engine.fused, causal=causal, tokens=left)
        needed = np.where((q <= 1) & (m >= place.pp), float(m), m + place.pp - 1.0) / place.pp
        times = np.where(b >= m, needed, np.inf)
        found.append(Turns(parts=seconds, times=times, layers=one.shape.layers, decoding=q <= 1))
    return found


def seconds_of(ways: Sequence[Turns], engine: Engine) -> Floats:
    """Of the fastest way; a turn takes the slower of host and devices, and a little more where they are alike."""
    best_s = np.inf
    for way in ways:
        device = sum(getattr(engine, kind) * way.parts[kind] for kind in KINDS)
        device = device + (engine.decode - 1.0) * engine.linear * way.parts["linear"] * way.decoding
        host = engine.host_step_s + way.layers * engine.host_layer_s
        slower, faster = np.maximum(host, device), np.minimum(host, device)
        turn = slower * (1.0 + (faster / slower) ** SHARP) ** (1.0 / SHARP)
        best_s = np.minimum(best_s, way.times * turn)
    return np.asarray(best_s, dtype=np.float64)
