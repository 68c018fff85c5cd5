"""Checkpoints in an object store, over the wire to a real server: what is committed stays, whatever is cut off when."""

import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("s3fs")
pytest.importorskip("moto")

from real.checkpoint import tools
from real.checkpoint.checkpointer import Checkpointer, load
from real.checkpoint.errors import CheckpointError, CorruptCheckpoint
from real.checkpoint.leaves import Part
from real.checkpoint.remote import Remote
from tests.real.checkpoint_processes import ended, forked
from tests.real.checkpoint_world import Threads, bits, in_world
from tests.real.s3_server import Line, options, served


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served() as (port, _):
        yield port


@pytest.fixture
def bucket(port: int, request: pytest.FixtureRequest) -> str:
    """A bucket for each test."""
    name = f"b{abs(hash(request.node.name))}"
    Remote(f"s3://{name}", **options(port)).fs.mkdir(name)
    return name


def state(step: int) -> dict[str, Any]:
    return {"model": {"a": torch.full((500,), float(step))}, "optimizer": {"m": torch.full((9,), step)}}


def checked(storage: Remote, allowed: set[int]) -> int:
    """All that is visible loads, and `latest` names one of the `allowed` steps; returns it."""
    for name in storage.names():
        target = state(0)
        step = load(storage, target, name=name).step
        assert all((t == step).all() for role in target.values() for t in role.values()), name
    found = load(storage, state(0)).step
    assert found in allowed
    return found


def test_two_ranks_save_one_loads_and_old_ones_go(port: int, bucket: str) -> None:
    address = f"s3://{bucket}/deep/run"
    whole = torch.arange(3 * 2**20, dtype=torch.float32)  # 12 MB: parts of 5 MB each

    def work(rank: int, ranks: Threads, background: Threads) -> list[str]:
        storage = Remote(address, default_block_size=5 * 2**20, **options(port))
        checkpointer = Checkpointer(storage, ranks=ranks, background=background, keep=2)
        half = Part(whole[rank * 2**19 * 3 :][: 2**19 * 3] + 0, (3 * 2**20,), (rank * 2**19 * 3,))
        names = []
        for step in range(4):
            saving = checkpointer.save(
                {"model": {"w": half, "b": torch.tensor(step)}, "extra": {"rank": rank}},
                step=step,
                asynchronous=step % 2 == 1,
            )
            names.append(saving.wait())
        return names

    assert in_world(2, work) == [[f"step-{i:08d}" for i in range(4)]] * 2
    storage = Remote(address, **options(port))
    assert (storage.names(), storage.latest()) == (["step-00000002", "step-00000003"], "step-00000003")
    target = {"model": {"w": torch.zeros(3 * 2**20), "b": torch.tensor(0)}, "extra": None}
    loaded = Checkpointer(storage).load(target, by_rank=[0, 1])
    assert bits(target["model"]["w"]) == bits(whole) and target["model"]["b"] == 3
    assert loaded.by_rank["extra"] == {0: {"rank": 0}, 1: {"rank": 1}}
    folders = {str(p).split("/")[3] for p in storage.fs.find(f"{bucket}/deep/run")}
    assert folders == {"latest", "step-00000002", "step-00000003"}


def test_the_commands_take_addresses(port: int, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing but the environment that S3's own tools read."""
    address = f"s3://{bucket}/run"
    for name, value in (
        ("ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("ACCESS_KEY_ID", "key"),
        ("SECRET_ACCESS_KEY", "x"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    for step in range(3):
        Checkpointer(address).save(state(step), step=step)
    assert tools.summary(address)["step"] == 2
    assert tools.verified(f"{address}/step-00000001")["nbytes"] == 4 * 500 + 8 * 9
    assert tools.differences(f"{address}/step-00000001", f"{address}/step-00000002")[0]["what"] == "500 of 500 elements"
    assert tools.pruned(address, 1) == ["step-00000000", "step-00000001"]
    assert Remote(address).names() == ["step-00000002"]
    there = tools.convert(address, f"s3://{bucket}/copy", "windtunnel", 0).written
    assert there == f"s3://{bucket}/copy/step-00000002" and tools.differences(address, there) == []


@pytest.mark.slow
def test_a_connection_that_is_lost_at_any_request(port: int, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each request of a save in turn meets a store that is gone, then it is back: training goes on, nothing is lost."""
    line = Line(port)
    storage = Remote(f"s3://{bucket}/run", **options(line.port))
    storage.fs.retries = 1
    checkpointer = Checkpointer(storage, keep=2)
    checkpointer.save(state(1), step=1)
    committed, words, failures = 1, "", 0
    for number in range(1, 60):
        step = 2 * number
        line.cut_at(number)
        saving = None
        try:
            saving = checkpointer.save(state(step), step=step, asynchronous=number % 2 == 0)
            saving.wait()
        except CheckpointError as error:
            failures, words = failures + 1, words + str(error)
        passed = line.requests < number
        line.mended()
        committed = checked(storage, {committed, step})
        assert committed == step or saving is None or saving.name is None
        if passed:
            break
        committed = step + 1
        checkpointer.save(state(committed), step=committed)  # training goes on, and what was left is removed
        assert len(storage.names()) == 2 and storage.latest() == storage.names()[-1]
        seen = {str(p).split("/")[2] for p in storage.fs.find(f"{bucket}/run")}
        assert seen == {"latest", *storage.names()}
    line.close()
    assert passed and failures > 6
    for name in ("model-000000.bin", "optimizer-000000.bin", "metadata.wtc", "run/latest"):
        assert f"{name}: given" in words
    assert "but older checkpoints were not removed" in caplog.text  # the store was gone after the commit


@pytest.mark.slow
def test_ranks_killed_at_any_request(port: int, bucket: str) -> None:
    """SIGKILL before every third request of a save: no broken checkpoint is seen, and the next save removes what is left of it."""
    address, steps = f"s3://{bucket}/run", []
    checkpointer = Checkpointer(Remote(address, **options(port)), keep=1)
    for number in range(1, 60, 3):
        checkpointer.save(state(1), step=1)

        def work(number: int = number) -> None:
            storage = Remote(address, **options(port))
            call, count = storage.fs._call_s3, 0

            async def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return await call(*args, **kwargs)

            storage.fs._call_s3 = counted
            Checkpointer(storage, keep=1).save(state(2), step=2)

        [code] = ended([forked(work)])
        steps.append(checked(checkpointer.storage, {1, 2}))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert steps == sorted(steps) and steps.count(1) > 1 and steps.count(2) > 1  # committed at one instant
    checkpointer.save(state(3), step=3)
    assert {str(p).split("/")[2] for p in checkpointer.storage.fs.find(f"{bucket}/run")} == {"latest", "step-00000003"}


def test_a_server_that_is_killed_costs_a_checkpoint_and_no_training() -> None:
    with served() as (port, process):
        storage = Remote("s3://bucket/run", **options(port))
        storage.fs.retries = 1
        storage.fs.mkdir("bucket")
        checkpointer = Checkpointer(storage)
        checkpointer.save(state(1), step=1)
        process.kill()
        process.wait()
        with pytest.raises(
            CheckpointError, match=r"bucket/run: given EndpointConnectionError.*the next save tries again"
        ):
            checkpointer.save(state(2), step=2, asynchronous=True).wait()
        with pytest.raises(CheckpointError, match=r"EndpointConnectionError"):
            load(storage, state(0))


def test_a_bucket_that_is_not_there_is_named_and_not_made(port: int) -> None:
    storage = Remote("s3://misspelt/run", **options(port))
    with pytest.raises(CheckpointError, match=r"misspelt/run/step-00000001/model-000000\.bin.*does not exist"):
        Checkpointer(storage).save(state(1), step=1)
    with pytest.raises(CheckpointError, match="nothing; no checkpoint is there"):
        load(storage, state(0))
    assert "misspelt" not in storage.fs.ls("")


def test_what_was_damaged_in_the_store_is_named(port: int, bucket: str) -> None:
    storage = Remote(f"s3://{bucket}/run", **options(port))
    Checkpointer(storage).save(state(1), step=1)
    path = f"{bucket}/run/step-00000001/model-000000.bin"
    raw = bytearray(storage.fs.cat_file(path))
    raw[70] ^= 4
    storage.fs.pipe_file(path, bytes(raw))
    with pytest.raises(CorruptCheckpoint, match=r"model-000000\.bin, shard model/a\[0\]\+\[500\]: given xxh3"):
        load(storage, state(0))
    storage.fs.pipe_file(path, bytes(raw[:-1]))
    with pytest.raises(CheckpointError, match=r"model-000000\.bin: given 1999 bytes; allowed: 2000"):
        load(storage, state(0))
    storage.fs.rm_file(path)
    with pytest.raises(CheckpointError, match=r"model-000000\.bin.*ENOENT"):
        load(storage, state(0))


def test_an_upload_that_is_given_up_leaves_neither_an_object_nor_parts_of_one(port: int, bucket: str) -> None:
    storage = Remote(f"s3://{bucket}/run", default_block_size=5 * 2**20, **options(port))
    part = memoryview(bytes(6 * 2**20))
    with pytest.raises(ZeroDivisionError), storage.writing("step-1", "model.bin", 3 * len(part)) as write:
        write(0, part)
        write(len(part), part)
        assert len(storage.fs.list_multipart_uploads(bucket)) == 1
        raise ZeroDivisionError
    assert storage.fs.list_multipart_uploads(bucket) == [] and storage.fs.find(bucket) == []


class Forgetful:
    """Of a client whose requests fail now and then, as fsspec's general `exists` sees them."""

    def __init__(self, fs: Any) -> None:
        self.fs, self.broken = fs, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fs, name)

    def info(self, path: str) -> Any:
        if self.broken and path.endswith("metadata.wtc"):
            raise ConnectionResetError(104, "Connection reset by peer")
        return self.fs.info(path)


def test_an_error_is_not_taken_for_an_absent_checkpoint() -> None:
    """fsspec's `exists` answers no when it cannot know; a committed checkpoint would be removed as a leftover."""
    storage = Remote("memory://forgetful/run")
    checkpointer = Checkpointer(storage)
    checkpointer.save(state(1), step=1)
    storage.fs = Forgetful(storage.fs)
    storage.fs.broken = True
    with pytest.raises(CheckpointError, match=r"step-00000001/metadata\.wtc.*ECONNRESET"):
        checkpointer.save(state(2), step=2)
    storage.fs.broken = False
    assert checked(storage, {1}) == 1


def test_what_cannot_be_removed_is_a_warning_of_a_save_that_succeeded(caplog: pytest.LogCaptureFixture) -> None:
    storage = Remote("memory://keeper/run")
    checkpointer = Checkpointer(storage, keep=1)
    checkpointer.save(state(1), step=1)

    class Denied(Forgetful):
        def rm_file(self, path: str) -> None:
            raise PermissionError("Access Denied")

    storage.fs = Denied(storage.fs)
    with caplog.at_level(logging.WARNING):
        assert checkpointer.save(state(2), step=2).wait() == "step-00000002"
    assert "step-00000001: given Access Denied (EACCES)" in caplog.text
    assert checked(storage, {2}) == 2 and storage.names() == ["step-00000001", "step-00000002"]
