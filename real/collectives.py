"""torch's collectives over flat tensors, under the name that this version of torch gives them."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def _named(new: str, old: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(dist, new, None) or getattr(dist, old)
    return found


ALL_GATHER = _named("all_gather_single", "all_gather_into_tensor")
REDUCE_SCATTER = _named("reduce_scatter_single", "reduce_scatter_tensor")
