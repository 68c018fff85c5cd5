"""Bytes of tensors on a CPU, where torch keeps no count of its own: what its profiler saw allocated and freed."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_B(run: Callable[[], object], before: Iterable[Tensor]) -> int:
    """The most bytes of tensors while `run` runs, with those of `before`, which exist already."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    assert seen.profiler is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most + sum(size_B(t) for t in before)


def size_B(x: Tensor) -> int:
    """Bytes of its own memory; a view of another tensor counts as that."""
    return x.untyped_storage().nbytes() if isinstance(x, torch.Tensor) else 0
