"""Shards gathered and summed up in one pass, beside torch and xxhash: borders of the algorithm, odd shapes, odd addresses.

Triton interprets (tests/conftest.py), or with TRITON_INTERPRET=0 runs on a GPU.
"""

from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

knobs = pytest.importorskip("triton").knobs

from real.checkpoint import memory  # noqa: E402
from real.checkpoint.checkpointer import Checkpointer, load  # noqa: E402
from real.checkpoint.snapshot import gathered, kernel_takes, rounds  # noqa: E402
from real.kernels import shard_gather  # noqa: E402
from real.kernels.shard_gather import KEYS, SHORT_B, checksum, gather, reference_gather, runs_of  # noqa: E402
from tests.real.checkpoint_world import bits, random_tensor  # noqa: E402

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("compiled kernels need a CUDA device; TRITON_INTERPRET=1 needs none", allow_module_level=True)

GENERATOR = torch.Generator().manual_seed(0)


def raw(nbytes: int) -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=GENERATOR).to(DEVICE)


def agrees(views: list[torch.Tensor]) -> None:
    found = gather(views)
    wanted, checksums = reference_gather(views)
    out = found.out.view(torch.uint8).cpu()
    for view, start, nbytes, sums, known in zip(
        views, found.starts, found.nbytes, found.sums.tolist(), checksums, strict=True
    ):
        assert torch.equal(out[start : start + nbytes], wanted.cpu()[start : start + nbytes])
        assert out[start : start + nbytes].numpy().tobytes() == bits(view.cpu())
        assert nbytes <= SHORT_B or checksum(sums, nbytes) == known, (nbytes, view.shape, view.stride())


def test_lengths_around_every_border_of_the_algorithm() -> None:
    """Stripes are 64 bytes, blocks 1,024, and four blocks are loaded together; short ones are only gathered."""
    near = [n + d for n in (64, 256, 1024, 2048, 4096, 8192) for d in (-1, 0, 1)]
    agrees([raw(n) for n in (0, 1, 7, 8, 9, 63, 240, 241, 255, *near)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool])
def test_strided_views_of_every_width(dtype: torch.dtype) -> None:
    """Columns, turned, every other row, boxes of three and four dimensions, one element, none."""
    x, y = (random_tensor(s, dtype, GENERATOR).to(DEVICE) for s in ((37, 41), (6, 5, 7, 9)))
    boxes = [y[:, 1:4, :, :2], y[1:5, 1:4, 2:6, 3], y[::2, :, 1:3, ::3]]  # the first and last have four levels
    agrees([x, x[3:20, 5:30], x.t(), x[::2], x[:, 7], x[0, 0], x[:, :0], *boxes])
    assert runs_of(boxes[2]) is None and runs_of(x.t()) == (
        x.element_size(),
        37,
        41 * x.element_size(),
        x.element_size(),
    )


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=4)
)
def test_any_boxes_at_any_address(cuts: list[tuple[int, int, int, bool]]) -> None:
    room, views = raw(80 * 80 + 9), []
    for rows, at, columns, turned in cuts:
        square = room[at : at + 80 * 80].view(80, 80)
        views.append((square.t() if turned else square)[rows:, at // 2 : at + columns])
    agrees(views)


def test_zeros_and_ones_and_the_definition() -> None:
    """Against the algorithm written out stripe by stripe."""
    for data in (bytes(1500), b"\xff" * 1500, bytes(range(256)) * 5):
        [sums] = gather([torch.frombuffer(bytearray(data), dtype=torch.uint8).to(DEVICE)]).sums.tolist()
        assert [n % 2**64 for n in sums] == plain_accumulators(data)
        assert checksum(sums, len(data)) == xxhash.xxh3_64_intdigest(data)


def plain_accumulators(data: bytes) -> list[int]:
    total = list(shard_gather.BEGIN)

    def word(source: bytes, at: int) -> int:
        return int.from_bytes(source[at : at + 8], "little")

    def add(at: int, secret: int) -> None:
        for i in range(8):
            value = word(data, at + 8 * i)
            keyed = value ^ word(shard_gather.SECRET, secret + 8 * i)
            total[i ^ 1] = (total[i ^ 1] + value) % 2**64
            total[i] = (total[i] + (keyed % 2**32) * (keyed >> 32)) % 2**64

    for stripe in range((len(data) - 1) // 64):
        add(64 * stripe, 8 * (stripe % 16))
        if stripe % 16 == 15:
            total = [
                (n ^ n >> 47 ^ word(shard_gather.SECRET, 128 + 8 * i)) * 0x9E3779B1 % 2**64 for i, n in enumerate(total)
            ]
    add(len(data) - 64, 121)
    return total


def test_shards_that_are_too_long_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_gather, "LONGEST_B", 1000)
    with pytest.raises(ValueError, match="a shard of 1001 bytes: at most 999"):
        gather([raw(3), raw(1001)])
    assert len(KEYS) == 40


def test_a_snapshot_in_rounds_is_that_of_torch() -> None:
    x = random_tensor((40, 50), torch.float32, GENERATOR).to(DEVICE)
    z = random_tensor((31, 9), torch.complex64, GENERATOR).to(DEVICE)
    views = [x, x[:, 3:40], raw(100), z.conj(), raw(5000), raw(0), x.t()]
    room = torch.empty(40_000, dtype=torch.uint8)
    for staging_B in (1, 9000, 10**6):
        room.fill_(9)
        start = 0
        for view, known in zip(views, gathered(views, room, staging_B), strict=True):
            wanted = bits(view.cpu().resolve_conj())
            assert room[start : start + len(wanted)].numpy().tobytes() == wanted
            assert known is None if len(wanted) <= SHORT_B else known == xxhash.xxh3_64_intdigest(wanted)
            start += -(-len(wanted) // 64) * 64
    assert gathered([], room) == []
    assert rounds([5, 5, 20, 1, 1], 10) == [(0, 2), (2, 3), (3, 5)]


def test_an_asynchronous_save_stores_what_the_kernel_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU; on a CPU here, as far as torch and Triton's interpreter go."""
    state = {"model": {"w": random_tensor((130, 70), torch.bfloat16, GENERATOR).to(DEVICE), "b": raw(20).float()}}
    plain = Checkpointer(tmp_path / "a", largest_shard_B=3000).save(state, step=1, asynchronous=True)
    plain.wait()
    if DEVICE == "cpu":
        assert plain.copied_by == "torch on the CPU"
        assert not kernel_takes(list(state["model"].values()))
        monkeypatch.setattr(memory, "is_on_gpu", lambda _: True)
        monkeypatch.setattr(memory, "kernel_takes", lambda _: True)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
        monkeypatch.setattr(memory.WarmBuffer, "_reserve", reserve_pageable)
    saving = Checkpointer(tmp_path / "b", largest_shard_B=3000).save(state, step=1, asynchronous=True)
    saving.wait()
    assert saving.copied_by == "triton kernel"
    monkeypatch.undo()
    files = {p.name: p.read_bytes() for p in (tmp_path / "a" / "step-00000001").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "b" / "step-00000001").iterdir()}
    target = {"model": {n: torch.zeros_like(t, device="cpu") for n, t in state["model"].items()}}
    load(tmp_path / "b", target)
    assert all(bits(t) == bits(state["model"][n].cpu()) for n, t in target["model"].items())


def reserve_pageable(buffer: memory.WarmBuffer, nbytes: int, *, pinned: bool) -> None:
    buffer._memory = torch.empty(nbytes, dtype=torch.uint8)
