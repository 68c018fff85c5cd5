"""What travels: named tensors as safetensors bytes, and the checks of those who get them.

The receiver knows what it asked for, so it knows names, types, shapes and the most bytes before anything comes. Nothing
that arrives is run, unpickled, or allowed to say how much memory is to be taken.
"""

from collections.abc import Mapping
from math import prod

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

Tensors = dict[str, Tensor]
Leaf = tuple[torch.dtype, tuple[int, ...]]
Layout = Mapping[str, Leaf]
"""Type and shape by name."""

HEADER_B, ENTRY_B = 1024, 256
"""Bytes that a parcel's header may have, and for each tensor more; a name has at most 100."""


class BadParcelError(ValueError):
    """What came is not what was asked for."""


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, Leaf]:
    """Type and shape of each."""
    return {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def header_B(layout: Layout) -> int:
    """The most bytes of names, types and shapes."""
    return HEADER_B + sum(ENTRY_B + len(name) for name in layout)


def values_B(layout: Layout) -> int:
    """Bytes of the numbers."""
    return sum(dtype.itemsize * prod(shape) for dtype, shape in layout.values())


def most_B(layout: Layout) -> int:
    """More than that is nothing that was asked for."""
    return header_B(layout) + values_B(layout)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """As safetensors."""
    return save({name: t.detach().contiguous() for name, t in tensors.items()})


def unpack(data: bytes, layout: Layout) -> Tensors:
    """The tensors of `data`. Raises `BadParcelError` unless they are exactly those of `layout`, and all numbers are finite."""
    if len(data) < 8 or len(data) > most_B(layout):
        raise BadParcelError(f"{len(data):,} B, at most {most_B(layout):,} B were asked for")
    header = int.from_bytes(data[:8], "little")
    if header > header_B(layout):
        raise BadParcelError(f"a header of {header:,} B, at most {header_B(layout):,} B make sense")
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BadParcelError(f"no safetensors: {str(error)[:200]}") from error
    if found.keys() != layout.keys():
        lacking, more = sorted(layout.keys() - found.keys())[:3], sorted(found.keys() - layout.keys())[:3]
        raise BadParcelError(f"without {lacking}, with {[m[:100] for m in more]} that nobody asked for")
    for name, (dtype, shape) in layout.items():
        got = found[name]
        if got.dtype != dtype or tuple(got.shape) != shape:
            raise BadParcelError(f"{name} is {got.dtype} {tuple(got.shape)}, not {dtype} {shape}")
        if got.is_floating_point() and not bool(torch.isfinite(got).all()):
            raise BadParcelError(f"{name} has numbers that are infinite or NaN")
    return found
