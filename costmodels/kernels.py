"""Kernels: a name, a dtype and a shape. FLOPs and bytes of each are pure functions of these."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kernel:
    """`count` launches of one kernel, one after the other. `shape` holds sizes by name, e.g. (("m", 8), ("n", 8), ("k", 8))."""

    name: str
    dtype: str
    shape: tuple[tuple[str, int], ...]
    count: int = 1


def kernel(name: str, dtype: str, *, count: int = 1, **shape: int) -> Kernel:
    """`kernel("gemm", "bfloat16", m=512, n=512, k=64)`."""
    return Kernel(name, dtype, tuple(sorted(shape.items())), count)
