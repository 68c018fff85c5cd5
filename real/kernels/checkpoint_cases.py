"""The kernel of checkpoints for `compile_ahead`, in each of its specialisations."""

from collections.abc import Callable, Iterator

import torch

from real.kernels.launching import Launch
from real.kernels.shard_gather import COLUMNS, KEYS, gather_launch

Case = Callable[[tuple[int, int]], Launch]
SHARDS = 160  # of 64 MiB each: 10 GB of a rank's state


def checkpoint_cases() -> Iterator[tuple[str, Case]]:
    """Names and launches."""
    table, sums, keys, out = (_meta(SHARDS, COLUMNS), _meta(SHARDS, 8), _meta(len(KEYS)), _meta(SHARDS * 2**23))
    for unit in (8, 4, 2, 1):
        for whole in (True, False):
            name = f"shard_gather {SHARDS} shards, {'whole' if whole else 'strided'}, {unit} B at once"
            yield (
                name,
                lambda _, unit=unit, whole=whole: gather_launch(table, keys, out, sums, unit=unit, whole=whole),
            )


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")
