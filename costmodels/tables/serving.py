"""Serving engines: columns gpu, n_gpus, interconnect, model (params_b, layers, hidden, heads, kv_heads), precision, tp, pp, engine,
batch_or_concurrency, input_len, output_len, metric, value, unit, notes. Every metric becomes seconds of one of `QUANTITIES`.

Left out because no shape decides them: memory, percentiles of queues (p99), times to the first token where requests queue, whole
requests whose answers end when they like, and what repeats another row (makespan).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from costmodels import fitted as tables
from costmodels.arithmetic import native_dtype
from costmodels.catalog import Catalog
from costmodels.prediction import Floats, Prediction
from costmodels.served_models import shape_of
from costmodels.serving import Engine, Served, Turns, engine_name, engine_of, plain_engine, said, seconds_of, turns
from costmodels.serving_parts import Place, Precision, largest_batch, precision_of, weights_B
from costmodels.specs import DeviceSpec, LinkSpec
from costmodels.tables.table import Fitted, TableSpec, devices_of, rows_of
from costmodels.transformer import TransformerShape

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = ("prefill", "decode", "end_to_end", "token")
"""Until the first token of all prompts; one step; prompt and all steps; end to end over all tokens that come out."""
METRICS = (
    (r"p99|p95|p90|^memory|makespan|goodput|start", None),
    (r"encoder|prefill|prompt|ttft|first token", "prefill"),
    (r"per-token|token \(tbt\)|inter-token|tpot|itl|time between|time per output", "decode"),
    (r"e2e|end-to-end|total latency", "end_to_end"),
    (r"request throughput", "requests"),
    (r"total throughput|prefill throughput", "all_tokens"),
    (r"throughput|tokens/s", "token"),
)
"""Words of a metric and its quantity; the first that is there."""
UNITS = {"ms": 1e-3, "s": 1.0, "us": 1e-6}
SHAREGPT = (222.0, 210.0)
"""Prompt and answer of a mean ShareGPT request as lmdeploy counts it: 422 tokens a request, of which 200 come out (its internlm-20b
rows), 233 (llama2-7b)."""
ALONE = (32.0, 128.0)
"""Prompt and answer where a table of single requests does not say."""
FORCED_TOKENS = 512.0
"""Splitwise's requests for longer answers end at an end token: they take as long as 340 to 540 tokens, whatever was asked for."""
LARGEST_BATCH = 256.0
"""Most sequences at a time of engines that take as many as fit: their own default."""
PADDED = "avg real len"
"""In an engine's name: it leaves padding out, and half of the tokens are padding."""
UNPADDED = ("triton",)
"""Engines whose encoders leave padding out without saying so: with all tokens their BERT-6B would beat the peak of an A100."""


def prepare(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Rows that are seconds of a `quantity` with batch, input_len and output_len known (batch NaN: the largest that fits)."""
    if "quantity" in frame.columns:
        return frame
    rows = [row for row in map(_prepared, rows_of(frame)) if row is not None]
    columns = [*frame.columns, "device", "batch", "quantity", "seconds"]
    import pandas as pd

    return pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))


def _prepared(row: dict[str, Any]) -> dict[str, Any] | None:
    metric, unit = str(row["metric"]).lower(), str(row["unit"]).lower()
    quantity = next((q for words, q in METRICS if re.search(words, metric)), None)
    value = float(row["value"])
    if quantity is None or not value > 0:
        return None
    lengths = _lengths(row)
    queued = "infinite request rate" in str(row.get("notes")) or "Poisson" in str(row.get("notes"))
    if lengths is None or (queued and quantity in ("prefill", "end_to_end")):
        return None
    if quantity == "end_to_end" and "modified" in str(row["engine"]) and lengths[1] > FORCED_TOKENS:
        return None
    if unit in UNITS and quantity in ("prefill", "decode", "end_to_end"):
        seconds = value * UNITS[unit]
    elif unit in ("tok/s", "tokens/s", "token/s", "req/s", "requests/s"):
        per_second = {"requests": lengths[1], "all_tokens": lengths[1] / sum(lengths)}.get(quantity, 1.0)
        quantity, seconds = "token", 1.0 / (value * per_second)
    else:
        return None
    batch = _batch(row, "max output" in metric)
    if batch is None:
        return None
    sizes = {"batch": batch, "input_len": lengths[0], "output_len": lengths[1]}
    return {**row, **sizes, "device": row["gpu"], "quantity": quantity, "seconds": seconds}


def _lengths(row: dict[str, Any]) -> tuple[float, float] | None:
    notes = str(row.get("notes"))
    sums = re.search(r"(\d+) .*requests.*sum in (\d+) out (\d+)", notes)
    given = float(row["input_len"]), float(row["output_len"])
    if given[0] > 0:
        return given[0], given[1] if given[1] > 0 else 1.0
    if sums:
        return float(sums[2]) / float(sums[1]), float(sums[3]) / float(sums[1])
    if "ShareGPT" in notes:
        return SHAREGPT
    return ALONE if row["batch_or_concurrency"] == 1 else None


def _batch(row: dict[str, Any], largest: bool) -> float | None:
    """NaN where the engine takes as many as fit."""
    given = float(row["batch_or_concurrency"])
    if given > 0:
        return given
    limit = re.search(r"max_num_seqs=(\d+)", str(row["engine"]))
    return float(limit[1]) if limit else float("nan") if largest else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows, at positions `at` of a frame, whose parts have been computed; what is left for `seconds` are an engine's factors.

    `prompt` and `step` are the ways to run a prefill and a decode step of each row (no steps: an encoder).
    """

    name: str
    device: str
    at: NDArray[np.intp]
    quantity: NDArray[np.str_]
    batch: Floats
    answer: Floats
    prompt: list[Turns]
    step: list[Turns]

    def seconds(self, engine: Engine) -> Floats:
        prompt = seconds_of(self.prompt, engine)
        step = seconds_of(self.step, engine)
        whole = prompt + np.maximum(self.answer - 1.0, 0.0) * step
        kinds = [self.quantity == q for q in QUANTITIES]
        return np.select(kinds, [prompt, step, whole, whole / (self.batch * self.answer)])


def _group(rows: "pd.DataFrame", at: Any, shape: TransformerShape, place: Place, precision: Precision) -> Group:
    """Rows of one model, place, precision and engine."""
    text = str(rows["engine"].iloc[0])
    engine = plain_engine(engine_name(text))
    prompt, answer = (rows[c].to_numpy(dtype=np.float64) for c in ("input_len", "output_len"))
    most = np.array([largest_batch(shape, place, precision, t) for t in (prompt + answer).tolist()])
    quantity = rows["quantity"].to_numpy(dtype=np.str_)
    queue = np.nan_to_num(rows["batch"].to_numpy(dtype=np.float64), nan=LARGEST_BATCH)
    running = np.isin(quantity, ("token", "decode"))
    batch = np.where(running, np.maximum(np.minimum(queue, most), 1.0), queue)
    causal = shape.vocab > 1
    without_padding = not causal and (PADDED in text or engine.name in UNPADDED)
    length = 0.5 * prompt if without_padding else prompt
    one = Served(shape=shape, place=place, precision=precision, engine=engine)
    first = turns(one, batch, length, length, causal=causal)
    middle = prompt + 0.5 * answer
    step = turns(one, batch, np.ones_like(middle), middle) if causal else first
    return Group(
        name=engine.name,
        device=place.device.name,
        at=np.asarray(at),
        quantity=quantity,
        batch=batch,
        answer=answer if causal else np.ones_like(answer),
        prompt=first,
        step=step,
    )


def merged(groups: Sequence[Group]) -> Group:
    """Groups of one engine as one, so that its factors are tried on all rows at once."""
    arrays = {n: np.concatenate([getattr(g, n) for g in groups]) for n in ("at", "quantity", "batch", "answer")}
    ways = {n: _merged_turns([getattr(g, n) for g in groups]) for n in ("prompt", "step")}
    return Group(name=groups[0].name, device="", **arrays, **ways)  # type: ignore[arg-type]


def _merged_turns(of_groups: Sequence[Sequence[Turns]]) -> list[Turns]:
    """Groups with fewer ways have the rest at infinite times."""
    found = []
    for i in range(max(map(len, of_groups))):
        ways = [w[i] if i < len(w) else replace(w[0], times=np.full_like(w[0].times, np.inf)) for w in of_groups]
        found.append(
            Turns(
                parts={k: np.concatenate([w.parts[k] for w in ways]) for k in ways[0].parts},
                times=np.concatenate([w.times for w in ways]),
                layers=np.concatenate([np.broadcast_to(w.layers, w.times.shape) for w in ways]),
                decoding=np.concatenate([w.decoding for w in ways]),
            )
        )
    return found


def groups_of(frame: "pd.DataFrame", catalog: Catalog) -> Iterator[Group]:
    """Rows that share model, place, precision and engine; rows of unknown devices, models and precisions are in none."""
    devices = devices_of(frame, catalog)
    keys = ["device", "model", "layers", "hidden", "heads", "kv_heads", "params_b", "precision", "tp", "pp", "engine"]
    indices = frame.groupby(keys, dropna=False, sort=True).indices
    for key, at in indices.items():
        named = dict(zip(keys, key, strict=True))  # type: ignore[call-overload]
        sizes = {k: _number(named[k]) for k in ("layers", "hidden", "heads", "kv_heads", "params_b")}
        shape, precision = shape_of(str(named["model"]), **sizes), precision_of(str(named["precision"]))
        if named["device"] in devices and shape is not None and precision is not None:
            place = _place(devices[named["device"]], _number(named["tp"]), _number(named["pp"]), catalog)
            yield _group(frame.iloc[at], at, shape, place, precision)


def _place(device: DeviceSpec, tp: float, pp: float, catalog: Catalog) -> Place:
    network: LinkSpec = catalog.link("infiniband_hdr")
    return Place(device=device, tp=max(int(tp), 1), pp=max(int(pp), 1), network=network)


def _number(value: object) -> float:
    found = float(value) if value is not None else 0.0  # type: ignore[arg-type]
    return found if np.isfinite(found) else 0.0


def predict(frame: "pd.DataFrame", catalog: Catalog, fitted: Fitted | None = None) -> Prediction:
    """(rows,) of a prepared frame; NaN for devices, models (mixtures of experts) and precisions that are not known."""
    found = tables.load("serving") if fitted is None else fitted
    out = np.full((3, len(frame)), np.nan)
    for group in groups_of(frame, catalog):
        engine = engine_of(group.name, found)
        told = said(group.seconds(engine), group.device, engine, found)
        out[:, group.at] = told.seconds, told.error, told.extrapolated
    return Prediction(seconds=out[0], error=out[1], extrapolated=~(out[2] == 0.0))


def roofline(frame: "pd.DataFrame", catalog: Catalog) -> Floats:
    """Of prompt and step the larger of linear layers' FLOPs over peaks and weights over bandwidths of all devices."""
    out = np.full(len(frame), np.nan)
    devices = devices_of(frame, catalog)
    for i, row in enumerate(rows_of(frame)):
        sizes = {k: _number(row.get(k)) for k in ("layers", "hidden", "heads", "kv_heads", "params_b")}
        shape, precision = shape_of(str(row["model"]), **sizes), precision_of(str(row["precision"]))
        if row["device"] in devices and shape is not None and precision is not None:
            out[i] = _at_the_peak(row, shape, precision, devices[row["device"]])
    return out


def _at_the_peak(row: dict[str, Any], shape: TransformerShape, precision: Precision, device: DeviceSpec) -> float:
    place = Place(device=device, tp=int(row["tp"]), pp=int(row["pp"]))
    prompt, answer = float(row["input_len"]), float(row["output_len"])
    batch = row["batch"] if row["batch"] > 0 else largest_batch(shape, place, precision, prompt + answer)
    weights = weights_B(shape, precision)
    flops = 2.0 * weights / precision.weight_B * max(batch, 1)
    dtype = {"float32": "float32", "tf32": "tf32", "int8": "int8", "fp8": "fp8"}.get(precision.gemm[0], "float16")
    peak = device.flop_per_s[native_dtype(dtype, device)] * place.tp * place.pp
    read = weights / (device.memory_B_per_s * place.tp * place.pp)
    once, step = max(flops * prompt / peak, read), max(flops / peak, read)
    whole = once + max(answer - 1, 0) * step
    return {"prefill": once, "decode": step, "end_to_end": whole}.get(row["quantity"], whole / (max(batch, 1) * answer))


TABLE = TableSpec(
    columns=(
        "gpu",
        "model",
        "precision",
        "tp",
        "pp",
        "engine",
        "batch_or_concurrency",
        "input_len",
        "output_len",
        "metric",
        "value",
        "unit",
    ),
    numbers=("tp", "pp", "value"),
    measured="seconds",
    groups=("source", "device", "quantity"),
    predict=predict,
    roofline=roofline,
    prepare=prepare,
)
