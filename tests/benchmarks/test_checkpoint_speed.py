"""Saves and loads 1.2 GB of sharded float32 on two ranks beside torch's DCP, dd and a plain copy; prints times and ratios.

Every figure is the median of five, and what is compared alternates within one run. Checksums are verified in every load. `save`
keeps one checkpoint, as a job does that saves again and again: its third and later saves write over the files of the one before the
last. `new files` is a save into new files, as all of DCP's are; what removes them is not timed. Two rounds of saves come first and
are not counted: until then `save` has no files to write over, and a virtual machine meets memory that its host has yet to give it
(one save of each kind took 1.0 to 1.7 s instead of 0.1 to 0.4).
"""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pytest_benchmark.fixture import BenchmarkFixture
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from real.checkpoint.checkpointer import Checkpointer
from real.checkpoint.memory import ALIGN_B
from real.checkpoint.retention import prune
from simcore.checkpoint.layouts import Mesh, Placement, layout
from simcore.checkpoint.saving import save_plan
from simcore.checkpoint.shards import TensorSpec
from tests.real.checkpoint_processes import ended, world

RANKS, ROUNDS, TENSORS, SIDE = 2, 5, 12, 5000
FIRST = 2
"""Rounds of saves that are not counted."""
STATE_B = TENSORS * SIDE * SIDE * 4


def state(mesh: DeviceMesh, dim: int, value: float | None) -> dict[str, DTensor]:
    torch.manual_seed(0)
    make = (lambda: torch.rand(SIDE, SIDE)) if value is None else (lambda: torch.full((SIDE, SIDE), value))
    return {f"t{i}": distribute_tensor(make(), mesh, [Shard(dim)]) for i in range(TENSORS)}


class Stopwatch:
    """Seconds of what all ranks do together, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        dist.barrier()
        begin = time.perf_counter()
        result = work()
        dist.barrier()
        self.seconds.setdefault(name, []).append(time.perf_counter() - begin)
        return result


def measure(root: Path, rank: int, out: Path, on_disk: bool) -> None:
    warnings.simplefilter("ignore")
    mesh = init_device_mesh("cpu", (RANKS,))
    held = state(mesh, 0, None)
    checkpointer, keeper = Checkpointer(root / "ours", keep=1), Checkpointer(root / "new")
    watch = Stopwatch()
    for i in range(FIRST + ROUNDS):
        watch("dcp save", lambda i=i: dcp.save({"model": held}, checkpoint_id=root / f"dcp{i}"))
        watch("save", lambda i=i: checkpointer.save({"model": held}, step=i))
        watch("new files", lambda i=i: keeper.save({"model": held}, step=i))
        if rank == 0:  # room for the next, outside of what is timed; the checkpointer that keeps one makes its own
            prune(keeper.storage, 1)
            shutil.rmtree(root / f"dcp{i - 1}", ignore_errors=True)
        if on_disk:
            watch("dd", lambda: dd(root) if rank == 0 else None)
    if not on_disk:
        stalls(watch, checkpointer, held, root)
        loads(watch, checkpointer, mesh, held, root / f"dcp{FIRST + ROUNDS - 1}")
    if rank == 0:
        out.write_text(json.dumps({name: times[-ROUNDS:] for name, times in watch.seconds.items()}))


def dd(root: Path) -> None:
    """What `dd` takes for the same bytes, from the source that costs least."""
    command = ["dd", "if=/dev/zero", f"of={root}/dd", "bs=16M", f"count={STATE_B >> 24}", "conv=fdatasync"]
    subprocess.run(command, check=True, capture_output=True)


def stalls(watch: Stopwatch, checkpointer: Checkpointer, held: dict[str, DTensor], root: Path) -> None:
    """How long training stands still, the first save apart; nothing else is written meanwhile."""
    warm = {n: t.to_local().clone() for n, t in held.items()}
    own = dist.new_group(backend="gloo")  # DCP's thread and this one would otherwise mix their collectives
    step = FIRST + ROUNDS
    checkpointer.save({"model": held}, step=step, asynchronous=True).wait()
    dcp.async_save({"model": held}, checkpoint_id=root / "dcp_async", process_group=own).result()
    for i in range(ROUNDS):
        watch("memcpy", lambda: [warm[n].copy_(t.to_local()) for n, t in held.items()])
        ours = watch("stall", lambda i=i: checkpointer.save({"model": held}, step=step + 1 + i, asynchronous=True))
        ours.wait()
        theirs = watch(
            "dcp stall", lambda: dcp.async_save({"model": held}, checkpoint_id=root / "dcp_async", process_group=own)
        )
        theirs.result()


def loads(
    watch: Stopwatch, checkpointer: Checkpointer, mesh: DeviceMesh, held: dict[str, DTensor], theirs: Path
) -> None:
    for name, dim in (("load", 0), ("reshard", 1)):
        wanted = held if dim == 0 else {n: t.redistribute(mesh, [Shard(1)]) for n, t in held.items()}
        for _ in range(ROUNDS):
            for label, read in (
                (f"dcp {name}", lambda t: dcp.load({"model": t}, checkpoint_id=theirs)),
                (name, lambda t: checkpointer.load({"model": t})),
            ):
                target = state(mesh, dim, 0.0)
                watch(label, lambda read=read, target=target: read(target))
                assert all(torch.equal(target[n].to_local(), wanted[n].to_local()) for n in target)


@pytest.fixture(params=["shm", "disk"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Path, bool]]:
    parent = Path("/dev/shm") if request.param == "shm" else Path(tempfile.gettempdir())
    if not parent.is_dir() or shutil.disk_usage(parent).free < 6 * STATE_B:
        pytest.skip(f"{parent} has no room for {6 * STATE_B / 1e9:.0f} GB")
    root = Path(tempfile.mkdtemp(dir=parent))
    yield root, request.param == "disk"
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.benchmark(group="checkpoint of 1.2 GB on two ranks")
def test_beside_dcp(
    benchmark: BenchmarkFixture,
    place: tuple[Path, bool],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if not request.config.getoption("benchmark_only"):
        pytest.skip("takes minutes and tests nothing that others do not: `make benchmark` runs it")
    root, on_disk = place
    out = root / "seconds.json"
    codes = benchmark.pedantic(lambda: ended(world(RANKS, lambda rank: measure(root, rank, out, on_disk))), rounds=1)
    assert codes == [0] * RANKS
    seconds = json.loads(out.read_text())
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {
        f"{name}: dcp / ours": median[f"dcp {name}"] / median[name]
        for name in ("save", "stall", "load", "reshard")
        if name in median
    }
    ratios["new files: dcp / ours"] = median["dcp save"] / median["new files"]
    if on_disk:
        ratios["save: dd / ours"] = median["dd"] / median["save"]
    else:
        ratios["stall / memcpy"] = median["stall"] / median["memcpy"]
    benchmark.extra_info |= {name: round(value, 2) for name, value in ratios.items()}
    with capsys.disabled():
        print(f"\n{'disk' if on_disk else '/dev/shm'}, {os.cpu_count()} cores")
        print(
            *(
                f"  {name:<12}{median[name]:8.3f} s {STATE_B / median[name] / 1e9:6.2f} GB/s"
                f"   ({min(times):.3f} to {max(times):.3f} s)"
                for name, times in seconds.items()
            ),
            sep="\n",
        )
        print(*(f"  {name:<20}{value:6.2f}" for name, value in ratios.items()), sep="\n")


@pytest.mark.benchmark(group="planning, 1,000 tensors over 1,024 ranks")
@pytest.mark.parametrize("replicas", [1, 8])
def test_planning(benchmark: BenchmarkFixture, replicas: int) -> None:
    """From what all ranks hold to who writes which shard where; with 8 replicas each of 128 shards has 8 candidates."""
    tensors = [TensorSpec(f"layer{i // 8}.w{i % 8}", (16384, 4096), "float32") for i in range(1000)]
    mesh = Mesh(dp=1024 // replicas, tp=replicas)
    shards = layout(tensors, [Placement(dp="shard")] * len(tensors), mesh)
    plan = benchmark.pedantic(save_plan, args=(shards,), kwargs={"align_B": ALIGN_B}, rounds=ROUNDS)
    assert len(plan.shards) == len(tensors) * 1024 // replicas
