"""When the tasks of a plan run on a rank, in the names that the plan has for them."""

from collections.abc import Iterator
from contextlib import contextmanager

from real.recorder import Recorder


class Spans:
    """`call` is what the rank does, such as `update_actor/u1`; parts of it are tasks under that name. Nothing is recorded of a run
    that is no plan's: its iteration stays at -1."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.call, self.now = recorder, "", ""

    def begin(self, iteration: int) -> None:
        """From now on everything belongs to an iteration; below 0 it is not recorded."""
        self.recorder.iteration = iteration

    def part(self, name: str | None) -> None:
        """From now on the rank computes this part of the call; None: nothing."""
        self.now = name or ""
        self.recorder.switch(f"{self.call}/{name}" if name else None)

    @contextmanager
    def sending(self, name: str, nbytes: int) -> Iterator[None]:
        """Communication that everything waits for; a name that begins with / is a task of its own."""
        with self.recorder.blocking(name[1:] if name.startswith("/") else f"{self.call}/{name}", nbytes):
            yield

    @contextmanager
    def summing(self, nbytes: int) -> Iterator[None]:
        """Tensor parallelism's sum over ranks: a task of its own in passes of training and scoring, part of it in generation."""
        if not self.now.endswith(("fwd", "bwd")):
            yield
            return
        with self.sending(f"{self.now}/tp", nbytes):
            yield


def unrecorded() -> Spans:
    """Of what belongs to no plan."""
    return Spans(Recorder())
