"""Samples that dataloaders had buffered, over another number of data-parallel ranks."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

from simcore.errors import InputError, Problem

T = TypeVar("T")
_NOTHING = object()


def redistribute(buffers: Sequence[Sequence[T]], dp: int) -> list[list[T]]:
    """The samples of `buffers`, one for each data-parallel rank that saved, as `dp` buffers. Raises InputError for less than one.

    Every rank takes one sample in turn, so the order in which training meets samples is theirs read across the ranks; it stays the
    same, and none is lost or seen twice (ByteCheckpoint, section 3.2, splits and merges buffers likewise).
    """
    if dp < 1:
        raise InputError("nobody would have the samples", [Problem("dp", str(dp), "1 or more")])
    in_turn = [x for row in zip_longest(*buffers, fillvalue=_NOTHING) for x in row if x is not _NOTHING]
    return [in_turn[rank::dp] for rank in range(dp)]  # type: ignore[misc]
