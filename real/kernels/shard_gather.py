"""Shards of a checkpoint, wherever they lie, into one buffer, and the checksum of each in the same pass.

The checksum is what the format stores, xxh3 with 64 bits (XXH3_64bits in xxHash's specification of the algorithm, "large inputs").
Its eight accumulators take 1,024 bytes at a time: the sixteen stripes of such a block are summed side by side, then the
accumulators are scrambled, which nothing can be moved across. So a shard is a loop over its blocks in one program, and shards run
side by side. The kernel leaves accumulators; mixing eight numbers into one is done on the host. Shards of up to 240 bytes, for
which xxh3 has other rules, are gathered here and left to the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl

from real.kernels.launching import Launch

STRIPE_B, BLOCK_B, SECRET_B = 64, 1024, 192
SHORT_B = 240
"""Of a shard that the host hashes."""
LONGEST_B = 2**31 - 2**20
"""Of a shard: bytes are counted in 32 bits."""
BLOCKS = 4
"""assumption: blocks of 1,024 bytes that are loaded together, 16 words of 8 bytes for each of 32 threads; one where words are put
together from strided bytes, which takes registers."""
COLUMNS = 8
"""Of a row of the table: address, place in the buffer, bytes, row of sums; bytes of a run, runs of a row of them, both strides."""

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
"""The secret that xxh3 uses where a caller gives none (xxHash specification)."""
PRIME32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
PRIME64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
BEGIN = (PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0])
LAST = SECRET_B - STRIPE_B - 7  # where in the secret the last stripe reads
MERGE = 11  # where the mixing of accumulators reads
MASK = 2**64 - 1


def _word(at: int) -> int:
    return int.from_bytes(SECRET[at : at + 8], "little")


KEYS = (*(_word(8 * i) for i in range(24)), *(_word(LAST + 8 * i) for i in range(8)), *BEGIN)
"""What the kernel reads: the secret, its words for the last stripe, and what accumulators begin with."""


@triton.jit
def _load(source, at, nbytes, run, runs, stride, far, UNIT: tl.constexpr, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Words of 8 bytes from byte `at` of a shard on, in the order of its elements; zeros before its begin and behind its end."""
    word = tl.zeros_like(at).to(tl.uint64)
    for piece in tl.static_range(8 // UNIT):
        byte = at + piece * UNIT
        inside = (byte >= 0) & (byte < nbytes)
        if WHOLE:
            place = byte.to(tl.int64)
        else:
            row = byte // run
            place = (row // runs).to(tl.int64) * far + (row % runs).to(tl.int64) * stride + (byte % run).to(tl.int64)
        if UNIT == 8:
            part = tl.load((source + place).to(tl.pointer_type(tl.uint64)), mask=inside, other=0)
        elif UNIT == 4:
            part = tl.load((source + place).to(tl.pointer_type(tl.uint32)), mask=inside, other=0)
        elif UNIT == 2:
            part = tl.load((source + place).to(tl.pointer_type(tl.uint16)), mask=inside, other=0)
        else:
            part = tl.load((source + place).to(tl.pointer_type(tl.uint8)), mask=inside, other=0)
        word |= part.to(tl.uint64) << (8 * UNIT * piece)
    return word


@triton.jit
def _product(word, key):  # type: ignore[no-untyped-def]
    """Low half times high half of a word and its key."""
    keyed = word ^ key
    return (keyed & 0xFFFFFFFF) * (keyed >> 32)


@triton.jit
def _crossed(x, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(ROWS, 8) with lanes 2i and 2i + 1 in each other's place."""
    even, odd = tl.split(tl.reshape(x, [ROWS, 4, 2]))
    return tl.reshape(tl.join(odd, even), [ROWS, 8])


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    table_ptr, keys_ptr, out_ptr, sums_ptr, UNIT: tl.constexpr, WHOLE: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One shard a program."""
    row = table_ptr + tl.program_id(0) * 8
    source = tl.load(row)
    out = out_ptr + tl.load(row + 1) // 8
    nbytes = tl.load(row + 2).to(tl.int32)
    run = tl.load(row + 4).to(tl.int32)
    runs = tl.load(row + 5).to(tl.int32)
    stride = tl.load(row + 6)
    far = tl.load(row + 7)
    block = tl.arange(0, BLOCKS)
    lane = tl.arange(0, 8)
    stripe = block[:, None, None] * 16 + tl.arange(0, 16)[None, :, None]
    key = tl.load(keys_ptr + tl.arange(0, 16)[:, None] + lane[None, :]).to(tl.uint64)
    scramble = tl.load(keys_ptr + 16 + lane).to(tl.uint64)
    total = tl.load(keys_ptr + 32 + lane).to(tl.uint64)
    for first in range(0, nbytes, BLOCKS * 1024):
        at = first + stripe * 64 + lane[None, None, :] * 8
        word = _load(source, at, nbytes, run, runs, stride, far, UNIT, WHOLE)
        tl.store(out + at // 8, word.to(tl.int64), mask=at < nbytes)
        counts = first // 64 + stripe < (nbytes - 1) // 64  # all but the last stripe, which may overlap the one before
        products = tl.sum(tl.where(counts, _product(word, key[None, :, :]), 0), axis=1)
        sums = products + _crossed(tl.sum(tl.where(counts, word, 0), axis=1), BLOCKS)
        for i in tl.static_range(BLOCKS):
            total += tl.sum(tl.where(block[:, None] == i, sums, 0), axis=0)
            scrambled = (total ^ (total >> 47) ^ scramble) * 0x9E3779B1
            total = tl.where(first // 1024 + i < (nbytes - 1) // 1024, scrambled, total)
    last = _load(source, nbytes - 64 + lane[None, :] * 8, nbytes, run, runs, stride, far, UNIT, WHOLE)
    key = tl.load(keys_ptr + 24 + lane[None, :]).to(tl.uint64)
    total += tl.sum(_product(last, key) + _crossed(last, 1), axis=0)
    tl.store(sums_ptr + tl.load(row + 3) * 8 + lane, total.to(tl.int64))


@dataclass(frozen=True, slots=True)
class Gathered:
    """`out` holds shard i from byte `starts[i]` on; `sums` (shards, 8) int64 are accumulators of xxh3, as bits, on the device."""

    out: torch.Tensor
    starts: tuple[int, ...]
    nbytes: tuple[int, ...]
    sums: torch.Tensor


def gather_launch(
    table: torch.Tensor, keys: torch.Tensor, out: torch.Tensor, sums: torch.Tensor, *, unit: int, whole: bool
) -> Launch:
    """`table` int64 (shards, 8), see COLUMNS; `keys` int64 (40,); `out` int64 words; `sums` int64 (shards of all launches, 8).

    `unit` divides every address, length and stride of the table: bytes that are loaded at once. `whole`: shards are contiguous.
    """
    return Launch(
        kernel=_gather,
        grid=(len(table),),
        arguments={"table_ptr": table, "keys_ptr": keys, "out_ptr": out, "sums_ptr": sums},
        constants={"UNIT": unit, "WHOLE": whole, "BLOCKS": BLOCKS if whole or unit >= 4 else 1},
        num_warps=1,
    )


def runs_of(view: torch.Tensor) -> tuple[int, int, int, int] | None:
    """Bytes of a contiguous run, runs of a row of them, the strides from run to run and from row to row; None for more levels."""
    item_B = view.element_size()
    levels: list[list[int]] = []  # length and stride in elements, the innermost first
    for length, stride in zip(reversed(view.shape), reversed(view.stride()), strict=True):
        if length == 1:
            continue
        if levels and stride == levels[-1][0] * levels[-1][1]:
            levels[-1][0] *= length
        else:
            levels.append([length, stride])
    if not levels or levels[0][1] != 1:
        levels.insert(0, [1, 1])
    if len(levels) > 3:
        return None
    levels += [[1, 0]] * (3 - len(levels))
    return levels[0][0] * item_B, levels[1][0], levels[1][1] * item_B, levels[2][1] * item_B


def gather(views: Sequence[torch.Tensor], *, align_B: int = STRIPE_B, out: torch.Tensor | None = None) -> Gathered:
    """Copy `views`, all on one device, into one buffer of bytes, each at a multiple of `align_B`, which 8 divides, and sum them up.

    Views may be strided in up to three levels; others are made contiguous first. `out`: int64 words to use, if there are enough.
    Raises ValueError for a shard of LONGEST_B or more.
    """
    sizes = tuple(v.numel() * v.element_size() for v in views)
    if max(sizes, default=0) >= LONGEST_B:
        raise ValueError(f"a shard of {max(sizes)} bytes: at most {LONGEST_B - 1} are gathered")
    starts, total_B = places(sizes, align_B)
    device = views[0].device if views else torch.device("cpu")
    if out is None or 8 * out.numel() < total_B:
        out = torch.empty(total_B // 8, dtype=torch.int64, device=device)
    sums = torch.zeros(len(views), 8, dtype=torch.int64, device=device)
    groups: dict[tuple[int, bool], list[list[int]]] = {}
    kept = []  # copies must live until the kernel is in the stream
    for i, (view, size, start) in enumerate(zip(views, sizes, starts, strict=True)):
        if not size:
            continue
        runs = runs_of(view)
        if runs is None:
            kept.append(view := view.contiguous())
            runs = (size, 1, 0, 0)
        whole = runs[0] == size
        unit = gcd(8, view.data_ptr(), *(runs if not whole else runs[:1]))
        groups.setdefault((unit, whole), []).append([view.data_ptr(), start, size, i, *runs])
    keys = _signed(KEYS, device)
    for (unit, whole), rows in groups.items():
        gather_launch(torch.tensor(rows, device=device), keys, out, sums, unit=unit, whole=whole).run()
    return Gathered(out, starts, sizes, sums)


def places(sizes: Sequence[int], align_B: int) -> tuple[tuple[int, ...], int]:
    """Where each shard begins, one after the other at multiples of `align_B`, and the bytes of all."""
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += -(-size // align_B) * align_B
    return tuple(starts), total


def _signed(words: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([w - 2**64 if w >= 2**63 else w for w in words], dtype=torch.int64, device=device)


def checksum(accumulators: Sequence[int], nbytes: int) -> int:
    """The xxh3 of a shard of more than SHORT_B bytes from its eight accumulators, given as int64 or as unsigned numbers."""
    mixed = nbytes * PRIME64[0] & MASK
    for i in range(4):
        a, b = (accumulators[2 * i + j] & MASK ^ _word(MERGE + 16 * i + 8 * j) for j in range(2))
        mixed += (a * b & MASK) ^ (a * b >> 64)
    mixed &= MASK
    mixed = (mixed ^ mixed >> 37) * 0x165667919E3779F9 & MASK
    return mixed ^ mixed >> 32


def reference_gather(views: Sequence[torch.Tensor], *, align_B: int = STRIPE_B) -> tuple[torch.Tensor, list[int]]:
    """The same in torch: bytes of all shards with zeros between them, and the checksums that xxhash computes."""
    import xxhash

    sizes = [v.numel() * v.element_size() for v in views]
    starts, total_B = places(sizes, align_B)
    out = torch.zeros(total_B, dtype=torch.uint8, device=views[0].device if views else None)
    for view, start, size in zip(views, starts, sizes, strict=True):
        out[start : start + size] = view.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
    host = out.cpu().numpy()
    return out, [xxhash.xxh3_64_intdigest(host[a : a + n]) for a, n in zip(starts, sizes, strict=True)]
