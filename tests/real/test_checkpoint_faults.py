"""Whatever ends a save, the last committed checkpoint loads, the broken one is not seen, and the next save cleans up."""

import errno
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from real.checkpoint.checkpointer import Checkpointer, load, save
from real.checkpoint.errors import CheckpointError
from real.checkpoint.leaves import Part
from real.checkpoint.storage import Local
from tests.real.checkpoint_processes import ended, forked, world
from tests.real.checkpoint_world import Threads, in_world

CALLS = ("pwrite", "fsync", "ftruncate")
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "os.scandir")


def state(step: int) -> dict[str, Any]:
    return {
        "model": {"a": torch.full((500,), float(step)), "b": torch.full((3, 7), step)},
        "optimizer": {"m": torch.full((9,), step)},
    }


def rank_state(step: int, rank: int) -> dict[str, Any]:
    """The same over two ranks."""
    held = Part(torch.full((250,), float(step)), (500,), (250 * rank,))
    return {**state(step), "model": {**state(step)["model"], "a": held}}


def before_each_call(root: Path, act: Callable[[int], None]) -> None:
    """From now on call `act` with a running number before everything that this process does to files under `root`, for good."""
    count = 0

    def happened() -> None:
        nonlocal count
        count += 1
        act(count)

    for name in CALLS:
        original = getattr(os, name)
        setattr(os, name, lambda *a, original=original: (happened(), original(*a))[1])
    sys.addaudithook(lambda event, args: happened() if event in EVENTS and str(root) in str(args[:2]) else None)


def kill_at(number: int) -> Callable[[int], None]:
    return lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == number else None


def check_root(root: Path, allowed: set[int]) -> int:
    """What `latest` names loads and is one of the `allowed` steps; so is all that is visible. Returns the step."""
    storage = Local(root)
    for name in storage.names():
        target = state(0)
        step = load(root, target, name=name).step
        assert all((t == step).all() for t in (*target["model"].values(), *target["optimizer"].values())), name
    found = load(root, state(0))
    assert found.step in allowed
    return found.step


def check_cleaned(root: Path) -> None:
    """After another save nothing is there but what is committed."""
    save(root, state(9), step=9)
    assert {p.name for p in root.iterdir()} == {"latest", *Local(root).names()}
    assert check_root(root, {9}) == 9


def prepared(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    save(root, state(1), step=1)


def save_next(root: Path) -> None:
    Checkpointer(root, keep=1, largest_shard_B=400).save(state(2), step=2)


def test_killed_before_any_call_to_the_file_system(tmp_path: Path) -> None:
    """Every instant between two calls, until a save is through: first the old one is the last, then the new one."""
    root, steps = tmp_path / "root", []
    for number in range(1, 500):
        prepared(root)

        def work(number: int = number) -> None:
            before_each_call(root, kill_at(number))
            save_next(root)

        [code] = ended([forked(work)])
        steps.append(check_root(root, {1, 2}))
        check_cleaned(root)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert steps == sorted(steps)  # committed at one instant
    assert (
        steps.count(1) > 20 and steps.count(2) > 3
    )  # kills while writing, and after it: retention is interrupted as well


@pytest.mark.slow
def test_killed_at_random_instants(tmp_path: Path) -> None:
    """200 jobs that save again and again, four at a time, killed after some milliseconds."""
    roots, rng, seen = [tmp_path / f"root{i}" for i in range(4)], np.random.default_rng(0), set()

    def work(root: Path) -> None:
        checkpointer = Checkpointer(root, keep=2)
        for step in range(2, 1000):
            checkpointer.save(state(step), step=step, asynchronous=step % 2 == 0)

    for _ in range(50):
        for root in roots:
            prepared(root)
        processes = [forked(lambda root=root: work(root)) for root in roots]
        after_s = np.sort(rng.uniform(0.0, 0.15, len(roots)))
        for process, pause_s in zip(processes, np.diff(after_s, prepend=0.0).tolist(), strict=True):
            time.sleep(pause_s)
            os.kill(process.pid, signal.SIGKILL)
        assert ended(processes) == [-signal.SIGKILL] * len(roots)
        for root in roots:
            seen.add(check_root(root, set(range(1, 1000))))
            save(root, state(1000), step=1000)
            assert {p.name for p in root.iterdir()} == {"latest", *Local(root).names()}
    assert len(seen) > 3


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)])
def test_ranks_killed_among_others(tmp_path: Path, victims: tuple[int, ...]) -> None:
    """One of two ranks, or both, at several of its calls; the other gets an error, and nothing half-written is seen."""
    root = tmp_path / "root"
    for number in (1, 2, 3, 5, 8, 12, 18, 25):
        prepared(root)

        def work(rank: int, number: int = number) -> None:
            checkpointer = Checkpointer(root, largest_shard_B=400)
            if rank in victims:
                before_each_call(root, kill_at(number))
            try:
                checkpointer.save(rank_state(2, rank), step=2, asynchronous=number % 2 == 1).wait()
            except CheckpointError as error:
                assert "ranks lost one another" in str(error)
                os._exit(3)
            os._exit(0)

        codes = ended(world(2, work))
        assert all(code in (0, 3, -signal.SIGKILL) for code in codes), codes
        step = check_root(root, {1, 2})
        if step == 1:
            assert 0 not in codes
        check_cleaned(root)


def failing(call: int, code: int) -> Callable[..., int]:
    """`os.pwrite` that fails at a call."""
    count, original = 0, os.pwrite

    def pwrite(*args: Any) -> int:
        nonlocal count
        count += 1
        if count == call:
            raise OSError(code, os.strerror(code))
        return original(*args)

    return pwrite


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_of_the_disk_names_file_and_shard_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: int, asynchronous: bool
) -> None:
    save(tmp_path, state(1), step=1)
    checkpointer = Checkpointer(tmp_path, threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", failing(call, code))
        with pytest.raises(CheckpointError) as caught:
            checkpointer.save(state(2), step=2, asynchronous=asynchronous).wait()
    words = str(caught.value)
    assert errno.errorcode[code] in words and os.strerror(code) in words
    assert (
        ("model-000000.bin" in words and "shard model/a[0]+[500]" in words)
        if call == 1
        else "optimizer-000000.bin" in words
    )
    assert {p.name for p in tmp_path.iterdir()} == {"latest", "step-00000001"}
    assert checkpointer.save(state(3), step=3, asynchronous=asynchronous).wait() == "step-00000003"
    assert check_root(tmp_path, {3}) == 3


def test_one_rank_without_space_stops_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, state(1), step=1)
    original = os.pwrite

    def pwrite(handle: int, *args: Any) -> int:
        if Path(f"/proc/self/fd/{handle}").readlink().name == "model-000001.bin":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(handle, *args)

    monkeypatch.setattr(os, "pwrite", pwrite)

    def work(rank: int, ranks: Threads, background: Threads) -> None:
        with pytest.raises(CheckpointError, match=r"model-000001\.bin \(rank 1\): given No space left on device"):
            Checkpointer(tmp_path, ranks=ranks, background=background).save(rank_state(2, rank), step=2)

    in_world(2, work)
    assert check_root(tmp_path, {1}) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"latest", "step-00000001"}


def test_a_real_limit_on_the_size_of_files(tmp_path: Path) -> None:
    save(tmp_path, state(1), step=1)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(CheckpointError, match=r"model-000000\.bin.*EFBIG"):
            save(tmp_path, state(2), step=2)

    assert ended([forked(work)]) == [0]
    check_root(tmp_path, {1})


def test_a_root_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/root"):
        save(tmp_path / "file" / "root", state(1), step=1)


def test_a_mount_that_vanishes_while_a_save_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, original = tmp_path / "root", os.fsync

    def vanish(handle: int) -> None:
        shutil.rmtree(root, ignore_errors=True)
        original(handle)

    checkpointer = Checkpointer(root)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", vanish)
        saving = checkpointer.save(state(1), step=1, asynchronous=True)
        with pytest.raises(CheckpointError, match=r"root.*ENOENT"):
            saving.wait()
    checkpointer.save(state(2), step=2)
    assert check_root(root, {2}) == 2
