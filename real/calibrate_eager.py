"""What generation and the calls of a controller take on this machine; see `costmodels.generation_eager` for what it is used for.

The first half runs in every process of a calibration, the second where it was started.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import nnls
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional
from transformers import LlamaForCausalLM

from costmodels import generation_eager
from costmodels.specs import DeviceSpec
from costmodels.transformer import TransformerShape
from real.microbench import InTurn, mean_and_spread, timed
from real.model import build_model
from real.rlhf.parallel import tensor_parallel
from real.rlhf.sampling import generate, gumbel
from simcore.hybridflow.grouping import Degrees

SMALL = {"hidden": 64, "ffn": 64, "heads": 8, "head_dim": 8, "vocab": 64, "max_len": 512}
DEPTHS = (2, 6)
"""Layers of models whose products are next to nothing: what a step takes grows by the host's time for a layer."""
LARGE: tuple[Mapping[str, int], ...] = (
    {"layers": 3, "hidden": 192, "ffn": 512, "heads": 3, "head_dim": 64, "vocab": 256, "max_len": 512},
    {"layers": 2, "hidden": 384, "ffn": 1024, "heads": 6, "head_dim": 64, "vocab": 256, "max_len": 512},
    {"layers": 1, "hidden": 768, "ffn": 2048, "heads": 12, "head_dim": 64, "vocab": 256, "max_len": 512},
)
"""Weights that caches hold, that they just about hold, and that they do not."""
BATCHES, PROMPTS, STEPS = (4, 16), (32, 192), 33
PACED = (BATCHES[-1], PROMPTS[0] + STEPS // 2)
"""Sequences, and tokens cached, of the decode steps that are this machine's pace; see `real.pace`."""
TRAINED = (8, 128)
"""Sequences and tokens of a pass between answers: an actor trains before it generates, and leaves nothing in caches."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
MATRICES = ((256, 256), (688, 256), (512, 512), (512, 1376), (1376, 512))
CACHES = (
    (1, 1, 8, 16),
    (4, 4, 64, 64),
    (8, 8, 64, 64),
    (16, 8, 128, 64),
    (32, 8, 192, 64),
)  # batch, heads, tokens, width
DRAWN = (16, 32, 256)  # sequences, tokens, vocabulary
CALLED_B = (4_096, 65_536, 1_048_576)
CALLS, HELD_S = 40, 0.5

ALONE = ("step_s", "layer_s", "draw_s", "products", "cache", "in_step", "element_s")
"""What of an entry is others where a process has the host for itself."""
SPLIT = ("split_layer_s", "split_forward_s", "split_backward_s")

Point = tuple[int, float]


def eager(at_least_s: float, repeats: int, prompts: Sequence[int]) -> dict[str, Any]:
    """Times of this process while the others measure the same; `steps` of whole models after prompts of each length: (shape, batch,
    tokens cached, seconds)."""
    shallow, deep = (_host_step_s(n, 2 * repeats, split=False) for n in DEPTHS)
    layer_s = (deep - shallow) / (DEPTHS[1] - DEPTHS[0])
    rows, length, vocab = DRAWN
    drawn = timed(lambda: gumbel(0, 0, torch.arange(rows), length, vocab), at_least_s)[0]
    return {
        "layer_s": layer_s,
        "step_s": max(shallow - DEPTHS[0] * layer_s, 0.0),
        **_split(layer_s, repeats),
        "products": [(n, _product_s(n, at_least_s)) for n in ROWS],
        "cache": [(2 * b * h * t * d, _cache_s(b, h, t, d, at_least_s)) for b, h, t, d in CACHES],
        "draw_s": drawn / (rows * length * vocab),
        "steps": [
            (shape, n, prompt + STEPS // 2, seconds)
            for (shape, n, prompt), seconds in step_seconds(list(product(LARGE, BATCHES, prompts)), repeats)
        ],
    }


Answers = tuple[Mapping[str, int], int, int]
"""Shape of a model, how many prompts it answers at once, and their length."""


def step_seconds(wanted: Sequence[Answers], repeats: int) -> list[tuple[Answers, float]]:
    """Seconds of a decode step until the last rank is done, for which whatever follows waits; after a pass of training, the mean of
    so many answers after the first, without the slowest.

    All in turn, and then again, so that they are measured on one machine: it is not as fast as half a minute before.
    """
    models = {tuple(shape.items()): _model(shape, split=False) for shape, _, _ in wanted}
    found: list[list[float]] = [[] for _ in wanted]
    for _ in range(repeats + 1):
        for seconds, (shape, batch, prompt) in zip(found, wanted, strict=True):
            model = models[tuple(shape.items())]
            tokens = torch.zeros(TRAINED, dtype=torch.int64)
            model(tokens, use_cache=False).logits.sum().backward()
            model.zero_grad()
            seconds.append(slowest_of_ranks(_step_s(model, torch.randint(0, shape["vocab"], (batch, prompt)))))
    return [(one, _usual(seconds)) for one, seconds in zip(wanted, found, strict=True)]


def _host_step_s(layers: int, repeats: int, *, split: bool) -> float:
    """Seconds of a step of next to no work."""
    model = _model({**SMALL, "layers": layers}, split=split)
    return _usual([_step_s(model, torch.zeros(1, PROMPTS[0], dtype=torch.int64)) for _ in range(repeats + 1)])


def _usual(seconds: Sequence[float]) -> float:
    """The mean over ranks of all but the first and the slowest."""
    return mean_of_ranks(mean_and_spread(list(seconds[1:]))[0])


def _step_s(model: LlamaForCausalLM, prompts: torch.Tensor) -> float:
    """Mean seconds of a decode step of an answer that all ranks begin together."""
    dist.barrier()
    read: list[float] = []
    generate(model, prompts, STEPS, end=-1, prompts_read=lambda: read.append(time.perf_counter()))
    return (time.perf_counter() - read[0]) / (STEPS - 1)


def _split(layer_s: float, repeats: int) -> dict[str, float]:
    """What a layer takes that is split over all processes, with its sums of next to nothing: of a step; and forward and backward in
    training, how much longer that is."""
    if dist.get_world_size() == 1:
        return {"split_layer_s": layer_s, "split_forward_s": 0.0, "split_backward_s": 0.0}
    shallow, deep = (_host_step_s(n, repeats, split=True) for n in DEPTHS)
    more = DEPTHS[1] - DEPTHS[0]
    each = [[np.array(_passes_s(n, 4 * repeats, split=split)) for n in DEPTHS] for split in (False, True)]
    (whole, split) = ((b - a) / more for a, b in each)
    found = dict(zip(("split_forward_s", "split_backward_s"), (split - whole).tolist(), strict=True))
    return {"split_layer_s": (deep - shallow) / more, **found}


def _passes_s(layers: int, repeats: int, *, split: bool) -> tuple[float, float]:
    """Seconds forward and backward of a few tokens: medians, the first two not counted."""
    model = _model({**SMALL, "layers": layers}, split=split)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    found = []
    for _ in range(repeats + 2):
        dist.barrier()
        start = time.perf_counter()
        loss = model(tokens, use_cache=False).logits.sum()
        middle = time.perf_counter()
        loss.backward()
        found.append((middle - start, time.perf_counter() - middle))
        model.zero_grad()
    forward, backward = np.median(found[2:], axis=0).tolist()
    return mean_of_ranks(forward), mean_of_ranks(backward)


def _model(shape: Mapping[str, int], *, split: bool) -> LlamaForCausalLM:
    """A Llama of calibration, whole or split over all processes."""
    model = build_model({**shape, "kv_heads": shape["heads"], "tied_embeddings": False}, "float32", 0)
    if split:
        world = dist.group.WORLD
        assert world is not None
        tensor_parallel(model, DeviceMesh.from_group(world, "cpu"))
    return model


def _product_s(rows: int, at_least_s: float) -> float:
    """Of a multiply-add: the mean of some matrices, without what starting a product takes."""
    tiny, each = _linear_s(1, 8, 8, at_least_s), []
    for wide, deep in MATRICES:
        seconds = _linear_s(rows, wide, deep, at_least_s)
        each.append(max(seconds - tiny, 0.1 * seconds) / (rows * wide * deep))
    return mean_of_ranks(float(np.mean(each)))


def _linear_s(rows: int, wide: int, deep: int, at_least_s: float) -> float:
    x, w = InTurn(lambda: (torch.randn(rows, deep),)), InTurn(lambda: (torch.randn(wide, deep),))
    with torch.no_grad():
        return timed(lambda: functional.linear(x.next()[0], w.next()[0]), at_least_s)[0]


def _cache_s(batch: int, heads: int, tokens: int, width: int, at_least_s: float) -> float:
    """Of appending a token to keys and values of a layer, and attending to all of them."""
    held = InTurn(lambda: tuple(torch.randn(batch, heads, tokens, width) for _ in range(2)))
    q, k, v = (torch.randn(batch, heads, 1, width) for _ in range(3))

    def run() -> torch.Tensor:
        keys, values = held.next()
        keys, values = torch.cat([keys, k], dim=-2), torch.cat([values, v], dim=-2)
        return functional.scaled_dot_product_attention(q, keys, values)

    return mean_of_ranks(timed(run, at_least_s)[0])


def mean_of_ranks(number: float) -> float:
    total = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def slowest_of_ranks(number: float) -> float:
    found = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found)


def entry(
    found: Mapping[str, Any], called: Sequence[Point], all_reduce: Mapping[int, Sequence[Point]]
) -> dict[str, Any]:
    """The `measured.eager` of a device, given what its processes found, but for what `in_steps` finds with it."""
    ((_, sum_s), *_) = next(iter(all_reduce.values()))
    layers = {name: found[name] - generation_eager.SUMS * sum_s for name in SPLIT}
    return {
        **{name: found[name] for name in ("step_s", "layer_s", "draw_s")},
        **{name: [list(point) for point in found[name]] for name in ("products", "cache")},
        **{name: max(seconds, found["layer_s"] if name == SPLIT[0] else 0.0) for name, seconds in layers.items()},
        "all_reduce": {n: [list(point) for point in points] for n, points in all_reduce.items()},
        "call": [list(point) for point in called],
        "in_step": 1.0,
        "element_s": 0.0,
    }


def in_steps(found: Mapping[str, Any], device: DeviceSpec) -> dict[str, float]:
    """`in_step` and `element_s` with which steps of a calibration's models come out nearest, by least squares of relative errors;
    neither is negative. `device` has 1 and 0 for them."""
    parts, left = [], []
    for sizes, batch, kv_len, seconds in found["steps"]:
        shape = TransformerShape(**sizes, kv_heads=sizes["heads"])
        beside = generation_eager.host_s(device, shape) + batch * shape.vocab * found["draw_s"]
        work = float(generation_eager.decode_s(device, shape, tp=1, batch=batch, kv_len=kv_len)) - beside
        parts.append([work / seconds, batch * shape.layers * shape.hidden / seconds])
        left.append(max(1.0 - beside / seconds, 0.0))
    (factor, element_s), _ = nnls(np.array(parts), np.array(left))
    return {"in_step": round(float(factor), 4), "element_s": float(element_s)}


def alone(quiet: Mapping[str, Any], busy: Mapping[str, Any]) -> dict[str, Any]:
    """The `eager.alone` of a device, given its `measured` of one process alone and with every core busy."""
    products = [one[-1] / all_[-1] for one, all_ in zip(*(m["kernels"]["gemm"] for m in (quiet, busy)), strict=True)]
    kernels = float(np.median(products)) * quiet["in_model"] / busy["in_model"]
    return {**{name: quiet["eager"][name] for name in ALONE}, "kernels": round(kernels, 4)}


def calls(processes: int) -> list[Point]:
    """(bytes, seconds) of a call that reads so much of the call before it, by a controller with as many processes as given, all at
    work. The controller has made all calls before the first of them ends, as it has where calls take long."""
    from real.rlhf.controller import Model, finish, put
    from real.rlhf.job import Job
    from real.rlhf.protocols import dp_proto
    from real.rlhf.run import processes as started

    found: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name, started([1] * processes, Path(name)) as pools:
        models = [Model("probe", pool, Degrees()) for pool in pools]
        for model in models:
            model.build(Job())
        finish(pools)
        for size in CALLED_B:
            column = put({"x": torch.zeros(64, size // 256)})
            for counted in (False, True):
                start = time.perf_counter()
                for model in models:
                    batch = model.call("echo", dp_proto(1), column, ("x",), ("x",), after_s=HELD_S)
                    for _ in range(CALLS):
                        batch = model.call("echo", dp_proto(1), batch, ("x",), ("x",))
                finish(pools)
                if counted:
                    found.append((size, (time.perf_counter() - start - HELD_S) / CALLS))
    return found
