"""What each process of a calibration does: time kernels side by side with the others, then collectives among all.

Started as `python -m real.calibrate_worker FOLDER [quick]`: FOLDER takes rank0.json, rank1.json, ...
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.distributed as dist
from scipy.optimize import isotonic_regression
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from costmodels.measured import sizes_of
from costmodels.transformer import TransformerShape
from costmodels.transformer_kernels import (
    Slice,
    Work,
    attention_block,
    attention_core,
    embedding,
    head,
    mlp_block,
)
from real import microbench
from real.calibrate_eager import PROMPTS, eager, mean_of_ranks
from real.calibrate_passes import FEW, MEASURED, MODELS, SEQ_LEN, SEQUENCES, WARM_UP, model_passes
from real.collectives import ALL_GATHER, REDUCE_SCATTER
from real.launch import tell
from real.microbench import DIFFERENTIABLE, NO_BACKWARD, InTurn, backward_seconds, forward, timed
from real.process import joined

LINEARS = (
    (128, 128),
    (344, 128),
    (128, 344),
    (128, 256),
    (256, 128),
    (256, 256),
    (344, 256),
    (256, 344),
    (688, 256),
    (256, 688),
)
LINEARS += ((512, 512), (1376, 512), (512, 1376))
ROWS, QUICK_ROWS = (64, 128, 256, 1024, 2048), (1024,)
CELLS = ((128, 128), (256, 256), (1024, 128), (1024, 256), (1024, 688), (2048, 512), (2048, 1376), (4096, 2048))
HEADS = (  # batch, heads, kv_heads, q_len, kv_len, head_dim, causal
    (2, 2, 2, 128, 128, 64, 1), (8, 4, 4, 128, 128, 64, 1), (16, 4, 4, 128, 128, 64, 1), (8, 2, 2, 128, 128, 64, 1),
    (4, 8, 8, 128, 128, 64, 1), (4, 4, 4, 256, 256, 64, 1), (16, 4, 4, 64, 64, 64, 1), (8, 4, 4, 128, 128, 32, 1),
)  # fmt: skip
SIZES = {
    "attention": HEADS,
    "embedding": ((256, 128, 256), (1024, 256, 256), (2048, 512, 256), (1024, 256, 8192)),
    "cross_entropy": ((256, 256), (1024, 256), (4096, 256), (1024, 8192)),
}
ADAMW = (200_000, 1_000_000, 3_200_000, 12_000_000)
COPY = (10_000, 100_000, 1_000_000, 10_000_000)
MESSAGES = (4, 4_096, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)
BESIDE_B, BESIDE = 1_048_576, 24  # size and number of the all-reduces that products run beside
PASSES = 2
ROUNDS = 3
"""Through all collectives: as threads happen to meet on a core they take half a millisecond or four, for a second at a time."""

Row = tuple[tuple[int, ...], float, float]


@record
def main() -> None:
    """Measure kernels, launch, and with several processes collectives and the slowdown beside them."""
    folder, quick = Path(sys.argv[1]), "quick" in sys.argv[2:]
    torch.manual_seed(0)
    with joined(cuda=False):
        found: dict[str, Any] = {
            "ranks": dist.get_world_size(),
            "kernels": _kernels(0.005 if quick else 0.04, quick, folder),
        }
        found["kernels"]["adamw"] = _optimizer(5 if quick else 40)
        found["launch_s"] = _launch()
        found["eager"] = eager(0.01 if quick else 0.03, 1 if quick else 5, PROMPTS[:1] if quick else PROMPTS)
        found["models"] = _models(0.3 if quick else 4.0, 1 if quick else WARM_UP)
        if dist.get_world_size() > 1:
            found["collectives"] = _collectives(1 if quick else ROUNDS, 5 if quick else 25)
            alone = dict(found["collectives"]["all_reduce"])[BESIDE_B]
            found["slowdown"] = median(_slowdown(alone) for _ in range(3))
        write_atomically(folder / f"rank{dist.get_rank()}.json", json.dumps(found))


def _kernels(at_least_s: float, quick: bool, folder: Path) -> dict[str, list[Row]]:
    """Every point twice, `quick` once; the faster counts, so that something else that ran for a moment does not."""
    found: dict[tuple[str, tuple[int, ...]], tuple[float, float]] = {}
    passes = 1 if quick else PASSES
    steps = passes * sum(1 for _ in _points(at_least_s, quick))
    for done, (name, sizes, run) in enumerate(chain(*(_points(at_least_s / passes, quick) for _ in range(passes)))):
        if dist.get_rank() == 0:
            tell(folder, done / steps, name)
        dist.barrier()
        both = torch.tensor(run())
        dist.all_reduce(both)
        seconds, spread = (both / dist.get_world_size()).tolist()
        found[name, sizes] = min(found.get((name, sizes), (seconds, spread)), (seconds, spread))
    out: dict[str, list[Row]] = {}
    for (name, sizes), (seconds, spread) in found.items():
        out.setdefault(name, []).append((sizes, seconds, spread))
    return out


def work_of(shape: Mapping[str, int], sequences: int) -> Work:
    """What a microbatch of one of the models is made of."""
    model = TransformerShape(**shape, kv_heads=shape["heads"])
    part = Slice(sequences=sequences, seq_len=SEQ_LEN, precision="float32", fused_projections=False)
    layer = attention_block(model, part, "none") + attention_core(model, part, "none") + mlp_block(model, part, "none")
    return embedding(model, part) + layer * model.layers + head(model, part)


def _points(at_least_s: float, quick: bool) -> Iterator[tuple[str, tuple[int, ...], Callable[[], tuple[float, float]]]]:
    """Every kernel and size with the function that times it."""
    inside_models = {
        (k.name, tuple(dict(k.shape)[size] for size in sizes_of(k.name)))
        for shape in MODELS
        for sequences in (FEW, SEQUENCES)
        for k in work_of(shape, sequences).forward
    }
    products = {sizes for name, sizes in inside_models if name == "gemm"}
    products |= {(rows, *sizes) for rows in (QUICK_ROWS if quick else ROWS) for sizes in LINEARS}
    for rows, wide, deep in sorted(products):
        for sizes, run in microbench.gemms(rows, wide, deep).items():
            yield "gemm", sizes, lambda run=run: timed(run, at_least_s)  # type: ignore[misc]
    for name, build in DIFFERENTIABLE.items():
        chosen = SIZES.get(name, CELLS)
        inside = {sizes for of, sizes in inside_models if of == name}
        for sizes in sorted(inside.union(chosen[::2] if quick else chosen)):
            apply, make = build(*sizes)
            yield name, sizes, lambda a=apply, m=make: timed(forward(a, m), at_least_s)  # type: ignore[misc]
            if name not in NO_BACKWARD:
                yield f"{name}_backward", sizes, lambda a=apply, m=make: backward_seconds(a, m, at_least_s)  # type: ignore[misc]
    for elements in COPY:
        yield "copy", (elements,), lambda e=elements: timed(microbench.copy(e), at_least_s)  # type: ignore[misc]


def _optimizer(repeats: int) -> list[Row]:
    """Steps as training takes them: all ranks at once, which have one memory, and when a pass has used the caches since the last.
    Sizes in turn, because memory is not as fast from one second to the next."""
    runs = {params: microbench.adamw(params) for params in ADAMW}
    used = torch.zeros(2, microbench.SPREAD_B // 4)
    found: dict[int, list[float]] = {params: [] for params in ADAMW}
    for params, run in chain.from_iterable(runs.items() for _ in range(repeats)):
        used[0].copy_(used[1])
        dist.barrier()
        start = time.perf_counter()
        run()
        found[params].append(time.perf_counter() - start)
    usual = {params: microbench.mean_and_spread(seconds) for params, seconds in found.items()}
    return [((params,), mean_of_ranks(seconds), spread) for params, (seconds, spread) in usual.items()]


def _launch() -> float:
    a = torch.ones(1)
    return timed(lambda: a.add_(1.0), 0.05)[0]


def _collectives(rounds: int, repeats: int) -> dict[str, list[tuple[int, float]]]:
    """Seconds by bytes, sizes as nccl-tests counts them: the mean of all ranks, of calls that stand between products.

    Between products as in training: what it costs to wake up, and that somebody is always a little late, is part of it. A message
    takes no less than a smaller one: what says otherwise is noise, and such sizes have their mean.
    """
    n, rank = dist.get_world_size(), dist.get_rank()
    found: dict[str, dict[int, list[float]]] = {}
    for size in MESSAGES * rounds:
        count = max(size // 4 // n, 1) * n
        buffers = InTurn(lambda c=count: (torch.zeros(c), torch.zeros(c // n)))  # type: ignore[misc]

        def swap(whole: torch.Tensor, _part: torch.Tensor, peer: int = rank ^ 1) -> None:
            if peer < n:
                dist.send(whole, peer) if rank < peer else dist.recv(whole, peer)

        runs: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
            "all_reduce": lambda whole, _: dist.all_reduce(whole),
            "all_gather": lambda whole, part: ALL_GATHER(whole, part),
            "reduce_scatter": lambda whole, part: REDUCE_SCATTER(part, whole),
            "send_recv": swap,
        }
        for name, run in runs.items():
            seconds = _between_products(run, buffers, repeats)
            found.setdefault(name, {}).setdefault(count * 4, []).append(seconds)
    return {name: _growing({size: fmean(each) for size, each in sizes.items()}) for name, sizes in found.items()}


def _growing(seconds: Mapping[int, float]) -> list[tuple[int, float]]:
    """By size, in least squares of logarithms."""
    sizes = sorted(seconds)
    logs = isotonic_regression([log(seconds[size]) for size in sizes]).x
    return [(size, exp(x)) for size, x in zip(sizes, logs.tolist(), strict=True)]


def _between_products(run: Callable[[torch.Tensor, torch.Tensor], object], buffers: InTurn, repeats: int) -> float:
    """Mean seconds of a call without the slowest twentieth."""
    a = torch.randn(512, 512)
    seconds = []
    dist.barrier()
    for _ in range(repeats + 2):
        a @ a
        whole, part = buffers.next()
        start = time.perf_counter()
        run(whole, part)
        seconds.append(time.perf_counter() - start)
    return mean_of_ranks(microbench.mean_and_spread(seconds[2:])[0])


def _slowdown(all_reduce_s: float) -> float:
    """What a second of all-reduces takes from the computing beside it, in seconds; `all_reduce_s` is one of `BESIDE_B` alone."""
    a, message = torch.randn(256, 256), torch.zeros(BESIDE_B // 4)

    dist.barrier()
    free, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.3:
        a @ a
        free += 1
    product_s = (time.perf_counter() - start) / free
    dist.barrier()
    products, start = 0, time.perf_counter()
    for _ in range(BESIDE):
        work = dist.all_reduce(message, async_op=True)
        assert work is not None
        while not work.is_completed():
            a @ a
            products += 1
        work.wait()
    lost_s = time.perf_counter() - start - products * product_s
    return min(max(mean_of_ranks(lost_s) / (BESIDE * all_reduce_s), 0.0), 0.9)


def _models(at_least_s: float, warm_up: int) -> list[dict[str, Any]]:
    """Of each of the models and microbatches: shape, sequences, and what its passes take."""
    found = zip(MEASURED, model_passes(at_least_s, warm_up), strict=True)
    return [{"shape": shape, "sequences": sequences, **asdict(took)} for (shape, sequences), took in found]


if __name__ == "__main__":
    main()
