"""A process of a pool: a rank of its process group, with a part of every model that is placed there.

Rows of a batch are in the object store of Ray, in pieces that other processes made; a process gets the pieces that its own rows
are in, so that data goes from process to process and the controller sees references.
"""

import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor

from real.groups import Groups
from real.load import Clock
from real.precision.memory_limit import MemoryLimit
from real.process import keep_freed_memory
from real.recorder import Recorder
from real.rlhf.job import Job
from real.rlhf.part import Columns, Part
from real.rlhf.placement import Portions
from real.rlhf.roles import ROLES
from real.rlhf.spans import Spans
from simcore.hybridflow.grouping import Degrees

PATIENCE = timedelta(seconds=300)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `first` to `end` of one of the columns behind a reference."""

    ref: "ray.ObjectRef[Columns]"
    column: str
    first: int
    end: int
    made: str = ""
    """The call that made it, with the pool that it was made in: `values@pool1`."""


class Worker:
    """One rank. Ray makes an actor of it: calls run one after the other, in the order in which the controller made them."""

    def __init__(self, rank: int, size: int, log: str, core: int | None = None) -> None:
        """`core` is the one that this rank has for itself: threads that move meet on one core while another is idle."""
        self.rank, self.size, self.pool = rank, size, Path(log).name.partition(".")[0]
        self.roles: dict[str, Any] = {}
        self.fetched_B = 0
        self.groups = Groups()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(out, stream.fileno())
        torch.set_num_threads(1)
        keep_freed_memory()
        if core is not None:
            os.sched_setaffinity(0, {core})
        self.spans = Spans(Recorder(cuda=torch.cuda.is_available()))
        self.origin: tuple[float | torch.cuda.Event, float] = (0.0, 0.0)
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    def meet(self) -> tuple[str, int]:
        """Rank 0: where the others find the store of this pool."""
        host = "127.0.0.1" if self.device.type == "cpu" else ray.util.get_node_ip_address()
        self.store = dist.TCPStore(host, 0, self.size, is_master=True, timeout=PATIENCE, wait_for_workers=False)
        return host, self.store.port

    def join(self, host: str, port: int) -> None:
        """Become a rank of the pool's process group: NCCL between GPUs, gloo between CPUs."""
        if self.rank > 0:
            self.store = dist.TCPStore(host, port, self.size, is_master=False, timeout=PATIENCE)
        if self.device.type == "cpu":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size, timeout=PATIENCE)

    def clear(self) -> None:
        """Drop every model."""
        self.roles = {}
        self.memory = MemoryLimit.start(self.rank, None, self.device)

    def build(self, role: str, job: Job, degrees: Degrees, portions: Portions) -> None:
        """Make this rank's part of a model."""
        self.roles[role] = ROLES[role](job, Part(degrees, portions, self.device, self.spans, self.groups))

    def run(
        self, role: str, method: str, wanted: Mapping[str, list[Piece]], constants: Mapping[str, Any], call: str = ""
    ) -> Any:
        """Call a method of a model on columns put together from pieces; `call` is what a plan has it as."""
        self.spans.call = call
        try:
            batch = self._batch(wanted)
            found = getattr(self.roles[role], method)(*([batch] if batch else []), **constants)
        except Exception:
            traceback.print_exc()  # into this rank's log
            raise
        self.spans.part(None)
        return {name: x.cpu() for name, x in found.items()} if isinstance(found, dict) else found

    def begin(self, iteration: int) -> None:
        """An iteration that is recorded; below 0 none is."""
        self._resolve()
        if iteration == 0:
            self.begun = Clock.now()
        self.spans.begin(iteration)
        if self.spans.recorder.cuda:
            self.origin = self.spans.recorder.now(), time.perf_counter()

    def recorded(self) -> dict[str, Any]:
        """What was recorded since iteration 0 began: pieces of tasks, how busy the process was; and what memory grew by since
        there was no model."""
        memory = self.memory
        self._resolve()
        return {
            "pieces": self.spans.recorder.pieces,
            "peak_B": memory.used_B(),
            "tensors_B": memory.used_B() if memory.cuda else None,
            "spent": Clock.now().since(self.begun),
        }

    def _resolve(self) -> None:
        """Times of what a GPU did since the last `begin`."""
        origin, at_s = self.origin
        if isinstance(origin, torch.cuda.Event):
            self.spans.recorder.resolve(origin, at_s)

    def fetched(self) -> int:
        """Bytes of rows that this process was given so far."""
        return self.fetched_B

    def _batch(self, wanted: Mapping[str, list[Piece]]) -> Columns:
        """Columns put together, once everything that they consist of was made."""
        pieces = [piece for column in wanted.values() for piece in column]
        refs = list(dict.fromkeys(piece.ref for piece in pieces))
        if refs:
            ray.wait(refs, num_returns=len(refs), fetch_local=False)
        self._arrive(pieces)
        self.spans.part("call")
        batch = {name: self._column(column) for name, column in wanted.items()}
        self.spans.part(None)
        return batch

    def _arrive(self, pieces: list[Piece]) -> None:
        """What was made in other pools, call by call, so that each is seen to arrive."""
        away: dict[str, list[Piece]] = {}
        for piece in pieces:
            call, _, pool = piece.made.partition("@")
            if pool and pool != self.pool:
                away.setdefault(call, []).append(piece)
        for call, found in away.items():
            with self.spans.sending(f"/{call}/to_{self.pool}", 0):
                ray.get([piece.ref for piece in found])

    def _column(self, pieces: list[Piece]) -> Tensor:
        found = ray.get([piece.ref for piece in pieces])
        rows = [columns[p.column][p.first : p.end] for columns, p in zip(found, pieces, strict=True)]
        column = torch.cat(rows).to(self.device)
        self.fetched_B += column.nbytes
        return column


def last_words(log: Path, lines: int = 12) -> str:
    """The end of what a process wrote."""
    if not log.is_file():
        return ""
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-lines:])
