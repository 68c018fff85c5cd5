"""The collector is off while anybody is inside, and afterwards as it was."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from real.checkpoint.checkpointer import Checkpointer
from real.checkpoint.collecting import no_collection
from real.checkpoint.storage import Local


@pytest.fixture(params=[True, False], ids=["on before", "off before"])
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    (gc.enable if request.param else gc.disable)()
    yield request.param
    gc.enable()


def test_it_is_as_it_was_when_the_last_one_is_out(before: bool) -> None:
    leave, entered = threading.Event(), threading.Event()

    def other() -> None:
        with no_collection():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(60)
    with no_collection():
        assert not gc.isenabled()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled() == before


def test_it_is_as_it_was_after_an_error(before: bool) -> None:
    with pytest.raises(ValueError, match="inside"), no_collection():
        raise ValueError("inside")
    assert gc.isenabled() == before


def test_synchronous_saves_and_loads_are_inside_to_their_end(before: bool, tmp_path: Path) -> None:
    seen: list[bool] = []

    class Watched(Local):
        def commit(self, place: str, step: int, metadata: bytes) -> str:
            seen.append(gc.isenabled())
            return super().commit(place, step, metadata)

        def metadata(self, name: str) -> bytes:
            seen.append(gc.isenabled())
            return super().metadata(name)

    checkpointer, state = Checkpointer(Watched(tmp_path)), {"model": {"w": torch.ones(3)}}
    checkpointer.save(state, step=1)
    checkpointer.load(state)
    assert seen == [False, False]
    assert gc.isenabled() == before
