"""Where old checkpoints are removed, their files are written over: faster, and never seen half-written."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from real.checkpoint.checkpointer import Checkpointer, load, save
from real.checkpoint.leaves import Part
from real.checkpoint.retention import prune
from real.checkpoint.storage import SPARE, Local
from real.checkpoint.tools import pruned, verified
from tests.real.checkpoint_processes import ended, forked
from tests.real.checkpoint_world import Threads, in_world
from tests.real.test_checkpoint_faults import before_each_call, check_cleaned, check_root, kill_at, state


def files(root: Path, name: str) -> dict[str, int]:
    """Data files of a checkpoint and their inodes."""
    return {p.name: p.stat().st_ino for p in (root / name).glob("*.bin")}


def test_the_next_save_writes_over_the_files_of_the_one_that_goes(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=1)
    inodes = []
    for step in range(1, 5):
        name = checkpointer.save(state(step), step=step, asynchronous=step % 2 == 0).wait()
        inodes.append(files(tmp_path, name))
        assert Local(tmp_path).names() == [name]
        assert check_root(tmp_path, {step}) == step
    assert inodes[2] == inodes[0] != inodes[1] == inodes[3]
    assert {p.name for p in tmp_path.iterdir()} == {"latest", "step-00000004", SPARE}


def test_a_save_of_other_sizes_leaves_nothing_of_the_old_bytes(tmp_path: Path) -> None:
    """Shorter and longer files, other gaps between shards, a file that is no longer needed."""
    ones = {"model": {"a": torch.full((5000,), 255, dtype=torch.uint8)}, "optimizer": {"m": torch.ones(9)}}
    odd = {"model": {n: torch.zeros(k, dtype=torch.uint8) for n, k in (("a", 3), ("b", 100), ("c", 7))}}
    long = {"model": {"a": torch.zeros(9001, dtype=torch.uint8)}}
    checkpointer = Checkpointer(tmp_path, keep=1)
    for step, wanted in enumerate((ones, ones, odd, long, odd)):
        name = checkpointer.save(wanted, step=step).wait()
        if wanted is not ones:
            assert not any((tmp_path / name / "model-000000.bin").read_bytes())
        verified(str(tmp_path))
    assert (tmp_path / name / "model-000000.bin").stat().st_size == 128 + 64 + 7 + 0


def test_what_has_another_name_or_is_no_file_is_not_written_over(tmp_path: Path) -> None:
    """A copy of a checkpoint made of hard links stays as it is."""
    root, copy = tmp_path / "root", tmp_path / "copy"
    checkpointer = Checkpointer(root, keep=1)
    first = checkpointer.save(state(1), step=1).wait()
    copy.mkdir()
    for path in (root / first).iterdir():
        os.link(path, copy / path.name)
    checkpointer.save(state(2), step=2)
    (root / SPARE / "optimizer-000000.bin").unlink()
    (root / SPARE / "optimizer-000000.bin").symlink_to(copy / "model-000000.bin")
    kept = {p.name: p.read_bytes() for p in copy.iterdir()}
    checkpointer.save(state(3), step=3)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == kept
    assert check_root(root, {3}) == 3


def test_who_keeps_everything_or_prunes_by_hand_keeps_no_spare_files(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=1)
    for step in (1, 2):
        checkpointer.save(state(step), step=step)
    assert (tmp_path / SPARE).is_dir()
    assert pruned(str(tmp_path), 1) == [SPARE]
    checkpointer.save(state(3), step=3)
    assert (tmp_path / SPARE).is_dir()
    save(tmp_path, state(4), step=4)
    assert prune(Local(tmp_path), 1) == ["step-00000003"]
    assert {p.name for p in tmp_path.iterdir()} == {"latest", "step-00000004"}


@pytest.mark.slow
def test_killed_before_any_call_while_files_are_written_over(tmp_path: Path) -> None:
    root, steps = tmp_path / "root", []
    for number in range(1, 500):
        shutil.rmtree(root, ignore_errors=True)
        checkpointer = Checkpointer(root, keep=1)
        for step in (1, 2):
            checkpointer.save(state(step), step=step)

        def work(number: int = number) -> None:
            before_each_call(root, kill_at(number))
            Checkpointer(root, keep=1).save(state(3), step=3)

        [code] = ended([forked(work)])
        steps.append(check_root(root, {2, 3}))
        check_cleaned(root)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert steps == sorted(steps)
    assert steps.count(2) > 15 and steps.count(3) > 3


def test_ranks_reuse_their_own_files(tmp_path: Path) -> None:
    def held(step: int, rank: int) -> dict[str, Any]:
        return {"model": {"a": Part(torch.full((250,), float(step)), (500,), (250 * rank,))}}

    def work(rank: int, ranks: Threads, background: Threads) -> None:
        checkpointer = Checkpointer(tmp_path, ranks=ranks, background=background, keep=1)
        for step in range(1, 5):
            checkpointer.save(held(step, rank), step=step, asynchronous=step > 2).wait()

    in_world(2, work)
    target = {"model": {"a": torch.zeros(500)}}
    load(tmp_path, target)
    assert (target["model"]["a"] == 4).all()
    assert set(files(tmp_path, "step-00000004")) == {"model-000000.bin", "model-000001.bin"}
