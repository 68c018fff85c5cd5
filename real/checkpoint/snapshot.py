"""The copy of a state that lies on a GPU: one kernel gathers shards and sums them up, then they travel to pinned memory together.

Without a kernel every shard is a transfer of its own, strided ones by way of a temporary tensor, and a core of the host reads all
bytes once more for their checksums. Memory on the GPU for this is bounded: shards pass through it in rounds.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import torch

from real.kernels.paths import path_of

STAGING_B = 2**30
"""assumption: of GPU memory that shards pass through; about sixteen shards of 64 MiB are summed up side by side."""


def kernel_takes(views: Sequence[torch.Tensor]) -> bool:
    """Whether `gathered` can copy these: on one NVIDIA GPU of sm_80 or later, with Triton installed, each below 2 GB."""
    if len({v.device for v in views}) != 1 or path_of(views[0].device) != "triton" or find_spec("triton") is None:
        return False
    from real.kernels.shard_gather import LONGEST_B

    return all(v.numel() * v.element_size() < LONGEST_B for v in views)


def gathered(views: Sequence[torch.Tensor], memory: torch.Tensor, staging_B: int = STAGING_B) -> list[int | None]:
    """Copy `views`, all on one device, one after the other at multiples of 64 bytes into `memory` (uint8, on the host).

    Returns the xxh3 of each, None for shards so short that xxh3 has other rules for them. They are there when this returns.
    """
    from real.kernels.shard_gather import SHORT_B, STRIPE_B, Gathered, checksum, gather, places

    plain = [v.detach().resolve_conj().resolve_neg() for v in views]
    starts, _ = places([v.numel() * v.element_size() for v in plain], STRIPE_B)
    staging, done = None, list[Gathered]()
    for first, stop in rounds([v.numel() * v.element_size() for v in plain], staging_B):
        found = gather(plain[first:stop], align_B=STRIPE_B, out=staging)
        staging = found.out
        nbytes = found.starts[-1] + found.nbytes[-1]
        target = memory[starts[first] : starts[first] + nbytes]
        target.copy_(staging.view(torch.uint8)[:nbytes], non_blocking=True)
        done.append(found)
    if plain and plain[0].is_cuda:
        torch.cuda.synchronize(plain[0].device)
    return [
        checksum(sums, size) if size > SHORT_B else None
        for found in done
        for sums, size in zip(found.sums.tolist(), found.nbytes, strict=True)
    ]


def rounds(sizes: Sequence[int], most_B: int) -> list[tuple[int, int]]:
    """First and one past the last of the shards that pass through together: as many as `most_B` holds, at least one."""
    found, first, filled = list[tuple[int, int]](), 0, 0
    for i, size in enumerate(sizes):
        if i > first and filled + size > most_B:
            found.append((first, i))
            first, filled = i, 0
        filled += size
    return [*found, (first, len(sizes))] if sizes else []
