"""Stores that refuse, vanish or were damaged, for real: the error names file and shard, and the job goes on."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from real.checkpoint.checkpointer import Checkpointer, load, save
from real.checkpoint.errors import CheckpointError, CorruptCheckpoint
from tests.real.checkpoint_processes import ended, forked

NOBODY = 65534


def state(step: int) -> dict[str, Any]:
    return {"model": {"a": torch.full((500,), float(step))}, "optimizer": {"m": torch.full((9,), step)}}


def unprivileged(work: Callable[[], None]) -> None:
    """`work` in a process to which permissions apply, as they do not to root."""

    def run() -> None:
        if os.geteuid() == 0:
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
        work()

    assert ended([forked(run)]) == [0]


@pytest.fixture
def root() -> Iterator[Path]:
    """A root with one checkpoint that everybody may read and nobody else may write; folders of pytest are closed to others."""
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        save(folder / "run", state(1), step=1)
        yield folder / "run"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_folder_that_may_not_be_written(root: Path, asynchronous: bool) -> None:
    root.chmod(0o555)

    def work() -> None:
        checkpointer = Checkpointer(root)
        for step in (2, 3):  # training goes on
            with pytest.raises(CheckpointError, match=r"run/\.writing-[0-9a-f]+: given Permission denied \(EACCES\)"):
                checkpointer.save(state(step), step=step, asynchronous=asynchronous).wait()
        assert load(root, state(0)).step == 1

    unprivileged(work)
    root.chmod(0o755)


def test_a_file_that_may_not_be_read_names_its_shards(root: Path) -> None:
    save(root, state(2), step=2)
    (root / "step-00000002" / "model-000000.bin").chmod(0)

    def work() -> None:
        with pytest.raises(CheckpointError, match=r"model-000000\.bin, shard model/a\[0\]\+\[500\]: .*EACCES"):
            load(root, state(0))
        assert load(root, state(0), step=1).step == 1

    unprivileged(work)


@pytest.mark.parametrize("left", ["an empty folder", "nothing"])
def test_a_mount_that_vanished_is_not_filled_in_its_place(root: Path, left: str) -> None:
    """What is left of a mount is an empty folder of the disk below; that is no place for a checkpoint."""
    checkpointer = Checkpointer(root)
    checkpointer.save(state(2), step=2)
    shutil.move(root, root.with_name("elsewhere"))
    if left == "an empty folder":
        root.mkdir()
    for step in (3, 4):
        with pytest.raises(CheckpointError, match=r"`latest` was in .*run before and is gone.*ENOENT"):
            checkpointer.save(state(step), step=step, asynchronous=step == 4).wait()
    with pytest.raises(CheckpointError, match="no checkpoint is there"):
        load(root, state(0))
    shutil.rmtree(root, ignore_errors=True)
    shutil.move(root.with_name("elsewhere"), root)
    assert checkpointer.save(state(5), step=5).wait() == "step-00000005"  # it is mounted again
    assert load(root, state(0), step=2).step == 2


def test_a_mount_that_vanishes_in_the_middle_of_a_load(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.preadv

    def vanished(handle: int, *args: Any) -> int:
        if "model-000000.bin" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return original(handle, *args)

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", vanished)
        with pytest.raises(CheckpointError, match=r"model-000000\.bin, shard model/a\[0\]\+\[500\]: .*ESTALE"):
            load(root, state(0))
    assert load(root, state(0)).step == 1


def test_after_a_damaged_checkpoint_the_one_before_it_loads_and_training_goes_on(root: Path) -> None:
    checkpointer = Checkpointer(root, keep=3)
    checkpointer.save(state(2), step=2)
    file = root / "step-00000002" / "optimizer-000000.bin"
    raw = bytearray(file.read_bytes())
    raw[40] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptCheckpoint, match=r"step-00000002/optimizer-000000\.bin, shard optimizer/m\[0\]\+\[9\]"):
        checkpointer.load(state(0))
    target = state(0)
    assert checkpointer.load(target, step=1).step == 1 and (target["optimizer"]["m"] == 1).all()
    checkpointer.save(state(3), step=3)
    assert checkpointer.load(state(0)).step == 3


@pytest.mark.parametrize("name", ["../run/step-00000001", "/etc", "step-00000001/..", "", "latest", ".writing-0"])
def test_names_that_lead_elsewhere_are_refused(root: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(root, state(0), name=name)
