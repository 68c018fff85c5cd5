"""Buckets of gradients that are reduced together, as torch's DistributedDataParallel and Megatron-LM fill them."""

from collections.abc import Sequence


def assign(sizes: Sequence[tuple[str, int]], first_B: float, cap_B: float) -> list[list[str]]:
    """Names in the order they are reduced: reverse of registration, a bucket closing once it holds `cap_B` bytes.

    `sizes` is (name, bytes) in registration order. The first bucket closes at `first_B` already, so that communication
    starts early (Li et al. 2020, PyTorch Distributed, section 3.2.3).
    """
    buckets: list[list[str]] = []
    current: list[str] = []
    held, limit = 0, first_B
    for name, size in reversed(sizes):
        current.append(name)
        held += size
        if held >= limit:
            buckets.append(current)
            current, held, limit = [], 0, cap_B
    return [*buckets, current] if current else buckets
