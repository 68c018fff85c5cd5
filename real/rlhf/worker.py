"""A process of a pool: a rank of its process group, with a part of every model that is placed there.

Rows of a batch are in the object store of Ray, in pieces that other processes made; a process gets the pieces that its own rows
are in, so that data goes from process to process and the controller sees references.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor

from real.rlhf.job import Job
from real.rlhf.roles import ROLES, Columns
from simcore.hybridflow.grouping import Degrees

PATIENCE = timedelta(seconds=300)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `first` to `end` of one of the columns behind a reference."""

    ref: "ray.ObjectRef[Columns]"
    column: str
    first: int
    end: int


class Worker:
    """One rank. Ray makes an actor of it: calls run one after the other, in the order in which the controller made them."""

    def __init__(self, rank: int, size: int, log: str) -> None:
        self.rank, self.size = rank, size
        self.roles: dict[str, Any] = {}
        self.fetched_B = 0
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(out, stream.fileno())
        torch.set_num_threads(1)
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

    def build(self, role: str, job: Job, degrees: Degrees) -> None:
        """Make this rank's part of a model."""
        self.roles[role] = ROLES[role](job, degrees, self.device)

    def run(self, role: str, method: str, wanted: Mapping[str, list[Piece]], constants: Mapping[str, Any]) -> Any:
        """Call a method of a model on columns put together from pieces."""
        batch = {name: self._column(pieces) for name, pieces in wanted.items()}
        found = getattr(self.roles[role], method)(*([batch] if batch else []), **constants)
        return {name: x.cpu() for name, x in found.items()} if isinstance(found, dict) else found

    def fetched(self) -> int:
        """Bytes of rows that this process was given so far."""
        return self.fetched_B

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
