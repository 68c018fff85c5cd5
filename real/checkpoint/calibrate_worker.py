"""What each process of a calibration of checkpoints does: save and load small states as any job would, and say what phases took.

Started as `python -m real.checkpoint.calibrate_worker FOLDER quick|full ROOT...`: FOLDER takes rank0.json, rank1.json, ..., and
under each ROOT, a folder of a store, checkpoints are made.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from real.checkpoint.checkpointer import Checkpointer
from real.checkpoint.leaves import Part
from real.checkpoint.ranks import own_group
from real.checkpoint.spans import Span, Spans
from real.checkpoint.speed import Speedometer
from real.checkpoint.steady import steady_runs
from real.checkpoint.storage import Local
from real.checkpoint.warming import WARM_LOADS, WARM_SAVES, forget
from real.checkpoint.watching import Log, WatchedRanks, WatchedStorage
from real.launch import tell
from real.process import joined

STATES = {
    "full": ((48, 8 * 2**20, 2), (96, 2**20, 2), (24, 2 * 2**20, 2), (192, 2**16, 3)),
    "quick": ((4, 2**20, 1), (4, 2**18, 1), (32, 2**12, 1)),
}
"""Tensors, bytes of each that a rank holds, and how often a launch saves and loads a state: what takes least varies most."""
COLUMNS = 1024
SMALL = 272
"""Elements that a rank holds of one more tensor, in front: what follows it in a file does not begin on a page, as in models, and
writing it to a disk takes the core half as long again."""
PHASES = (
    "agree",
    "copy",
    "serialise",
    "upload",
    "system",
    "barrier",
    "barrier/meet",
    "commit",
    "planning",
    "read/metadata",
    "read",
    "deserialise",
    "exchange",
)
KNOWN = Spans({name: name for phase in PHASES for name in (phase, f"{phase}/model")})
State = dict[str, dict[str, Any]]
Row = dict[str, Any]


@record
def main() -> None:
    """Measure every state on every store."""
    folder, how, roots = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    with joined(cuda=False):
        found = {}
        for i, root in enumerate(roots):
            if dist.get_rank() == 0:
                tell(folder, i / len(roots), root)
            found[root] = _on_store(Path(root), STATES[how])
        write_atomically(folder / f"rank{dist.get_rank()}.json", json.dumps(found))


def _on_store(parent: Path, states: Iterable[tuple[int, int, int]]) -> list[Row]:
    """Rows of all states, in folders of their own that are removed one by one."""
    found = list[Row]()
    with tempfile.TemporaryDirectory(dir=parent, prefix=".windtunnel-calibration-") as own:
        shared = [own]
        dist.broadcast_object_list(shared)
        root = Path(shared[0])
        speedometer = Speedometer(root)
        for i, (count, nbytes, repeats) in enumerate(states):
            job = _Job(root / str(i), speedometer, count, nbytes)
            found += _of_state(job, repeats)
            dist.barrier()  # nobody removes what others still read
            if dist.get_rank() == 0:
                shutil.rmtree(job.root)
        dist.barrier()
    return found


def _of_state(one: "_Job", repeats: int) -> Iterator[Row]:
    """Rows for a save, a load of the same rows, one of columns, and one that all ranks want whole."""
    yield one.measured("save", one.rows, repeats, one.save)
    yield one.measured("load", one.rows, repeats, one.load)
    if one.size > 1:
        alone = list(range(one.size))
        yield one.measured("columns", one.columns, repeats, lambda state: one.load(state, groups=alone))
        yield one.measured("whole", one.whole, repeats, one.load)


class _Job:
    """States of `count` tensors, of each of which a rank holds `nbytes` where they are cut into rows."""

    def __init__(self, root: Path, speedometer: Speedometer, count: int, nbytes: int) -> None:
        self.size, self.rank = dist.get_world_size(), dist.get_rank()
        self.root, self.count = root, count
        self.shape = (max(nbytes // 4 // COLUMNS, 1) * self.size, COLUMNS)
        self.log = Log()
        ranks, background = WatchedRanks(own_group(), self.log), WatchedRanks(own_group(), self.log)
        self.checkpointer = Checkpointer(
            WatchedStorage(Local(root), self.log), ranks=ranks, background=background, threads=1, keep=1
        )
        self.step = 0
        self.speedometer = speedometer

    def rows(self) -> State:
        """This rank's rows of every tensor."""
        each = self.shape[0] // self.size
        part = lambda: Part(torch.ones(each, self.shape[1]), self.shape, (self.rank * each, 0))  # noqa: E731
        return self._parts(part, self._small())

    def columns(self) -> State:
        """This rank's columns."""
        each = self.shape[1] // self.size
        part = lambda: Part(torch.ones(self.shape[0], each), self.shape, (0, self.rank * each))  # noqa: E731
        return self._parts(part, self._small())

    def whole(self) -> State:
        """All of every tensor."""
        return self._parts(lambda: torch.ones(self.shape), torch.ones(SMALL * self.size))

    def _small(self) -> Part:
        return Part(torch.ones(SMALL), (SMALL * self.size,), (self.rank * SMALL,))

    def _parts(self, make: Callable[[], Any], small: Any) -> State:
        return {"model": {"norm": small, **{f"t{i}": make() for i in range(self.count)}}}

    def measured(
        self, what: str, make: Callable[[], State], repeats: int, once: Callable[[State], tuple[float, list[Span]]]
    ) -> Row:
        """Seconds of every run and of each phase in it; the first time, which plans and touches memory, as `first_agree` alone."""
        state = make()
        first = _summed(once(state)[1])
        for _ in range((WARM_SAVES if what == "save" else WARM_LOADS) - 1):
            once(state)
        runs = steady_runs(self.speedometer, lambda: once(state), repeats)
        shapes = [leaf.data.numel() if isinstance(leaf, Part) else leaf.numel() for leaf in state["model"].values()]
        return {
            "what": what,
            "items": len(shapes),
            "shards": len(shapes) * self.size,
            "nbytes": 4 * sum(shapes),
            "read_B": self._read_B(),
            "received_B": sum(c.nbytes for c in self.log.calls if c.what == "exchange"),
            "first_agree": first.get("agree", 0.0),
            "runs": [
                {"seconds": run.result[0], "phases": _summed(run.result[1]), "speed": asdict(run.speed)} for run in runs
            ],
        }

    def _read_B(self) -> int:
        return sum(c.nbytes for c in self.log.calls if c.what == "read")

    def save(self, state: State) -> tuple[float, list[Span]]:
        """An asynchronous save that is waited for."""
        self.step += 1
        start = self._start()
        saving = self.checkpointer.save(state, step=self.step, asynchronous=True)
        saving.wait()
        seconds = time.perf_counter() - start
        return seconds, KNOWN.saved(self.log.calls, start, saving.phases_s, {"model": 1})

    def load(self, state: State, groups: list[int] | None = None) -> tuple[float, list[Span]]:
        """A load from the store itself."""
        if self.rank == 0:
            forget(self.root)
        start = self._start()
        self.checkpointer.load(state, read_groups=groups)
        end = time.perf_counter()
        return end - start, KNOWN.loaded(self.log.calls, start, end)

    def _start(self) -> float:
        dist.barrier()
        self.log.calls.clear()
        return time.perf_counter()


def _summed(spans: Iterable[Span]) -> Mapping[str, float]:
    """Seconds by phase."""
    found: dict[str, float] = {}
    for task, start, end, _ in spans:
        phase = task.removesuffix("/model")
        found[phase] = found.get(phase, 0.0) + end - start
    return found


if __name__ == "__main__":
    main()
