"""Bytes of tensors on a CPU, where torch keeps no count of its own: what its profiler saw allocated and freed."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
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
    return most + sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in before}.values())


def standing(module: nn.Module, optimizer: torch.optim.Optimizer, messages: Iterable[Tensor]) -> list[Tensor]:
    """Tensors that exist between iterations; views share their memory and `peak_B` counts it once."""
    kept = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    return [*module.parameters(), *module.buffers(), *trained, *kept, *messages]
