"""A rank's limit of memory, held for real: what it takes beyond what it had when the limit was set."""

import ctypes
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from simcore.errors import CannotRun, Problem

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SLACK_B = 256 * 2**20
"""Address space beyond the limit that a process may take: stacks of threads, and gaps between tensors in the C library's heap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """`limit_B` of a rank, None without one; `before_B` is what the process had resident when it began to count."""

    rank: int
    limit_B: float | None
    before_B: int
    cuda: bool

    @classmethod
    def start(cls, rank: int, limit_B: float | None, device: torch.device) -> "MemoryLimit":
        """Count from now on. Beyond the limit a GPU refuses to allocate, and so does the system soon after it on a CPU."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            if limit_B is not None:
                share = limit_B / torch.cuda.get_device_properties(device).total_memory
                torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)
            return cls(rank=rank, limit_B=limit_B, before_B=0, cuda=True)
        _forget_peak()
        if limit_B is not None and STATUS.is_file():
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            soft = _status_B("VmData") + int(limit_B) + SLACK_B
            resource.setrlimit(resource.RLIMIT_DATA, (soft if hard < 0 else min(soft, hard), hard))
        return cls(rank=rank, limit_B=limit_B, before_B=peak_resident_B(), cuda=False)

    def used_B(self) -> int:
        """The most memory that was taken so far."""
        return torch.cuda.max_memory_allocated() if self.cuda else peak_resident_B() - self.before_B

    def hold(self, tensors_B: int) -> None:
        """Raises `CannotRun` where tensors take more than the limit allows."""
        if self.limit_B is not None and tensors_B > self.limit_B:
            raise self.exceeded(f"{tensors_B / 1e6:.1f} MB")

    def exceeded(self, needed: str) -> CannotRun:
        """The error of a rank that needs more than it may take."""
        assert self.limit_B is not None
        advice = "Narrow more of its operators or give it fewer samples."
        problem = Problem(f"memory of rank {self.rank}", needed, f"{self.limit_B / 1e6:.1f} MB, its limit", advice)
        return CannotRun(f"rank {self.rank} exceeded its memory limit of {self.limit_B / 1e6:.1f} MB", [problem])


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python could not allocate."""
    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return refused or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def peak_resident_B() -> int:
    """The most memory this process ever had.

    Linux starts a process's `ru_maxrss` at the size of its parent, so that growth would not show; its VmHWM starts at nothing.
    """
    if STATUS.is_file():
        return _status_B("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_B(field: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    """Hand freed memory back and count the peak anew, where the system can (Linux)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if CLEAR.is_file():
        CLEAR.write_text("5")
