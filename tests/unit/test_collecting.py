"""The collector is off while anybody is inside, and afterwards as it was."""

import gc
import threading
from collections.abc import Iterator

import pytest

from real.checkpoint.collecting import no_collection


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
