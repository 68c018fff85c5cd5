"""Pipelines: which whole layers a stage keeps of a model, and what goes from stage to stage.

torch.distributed.pipelining plays a schedule over batches of one size and does not say when a pass begins or ends. A plan has a
task for every pass, and passes that score have other sizes than those that train, so stages send and receive by themselves.
"""

from contextlib import AbstractContextManager
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from real.rlhf.spans import Spans
from simcore.training.schedule import layers_of_chunks

M = TypeVar("M", bound=nn.Module)


class Stage:
    """A rank's place in its pipeline: stage `number` of `count`, between which hidden states are `width` wide."""

    def __init__(self, ahead: dist.ProcessGroup, back: dist.ProcessGroup | None, width: int, spans: Spans) -> None:
        """`ahead` has the ranks of this rank's pipeline in their order, and so has `back` where they are more than one. Gradients
        have a group of their own: between two GPUs what one group sends waits for what it receives."""
        self.number, self.count = ahead.rank(), ahead.size()
        self.width, self.spans = width, spans
        self._ways: dict[bool, _Way] = {}
        if back is not None:
            self._ways = {True: _Way(ahead, self.number, 1), False: _Way(back, self.number, -1)}

    @property
    def first(self) -> bool:
        return self.number == 0

    @property
    def last(self) -> bool:
        return self.number == self.count - 1

    def receive(self, into: Tensor, task: str, *, ahead: bool) -> Tensor:
        """What the stage before sends ahead, or the one behind sends back, once it has done `task`: a pass, with `{s}` for the
        number of its stage. Waiting for it is no task, its way is."""
        self.spans.part(None)
        way = self._ways[ahead]
        return way.receive(into, self.spans.sending(f"{task.format(s=way.source)}/send", into.nbytes))

    def send(self, x: Tensor, *, ahead: bool) -> None:
        """To the next stage, or back to the one before. Waits, which is no task, until what was sent before is there."""
        self.spans.part(None)
        self._ways[ahead].send(x.detach().contiguous())

    def settle(self) -> None:
        """Wait until all that was sent is there, which is no task."""
        self.spans.part(None)
        for way in self._ways.values():
            way.settle()


class _Way:
    """From a stage to its neighbour in one direction. Who sends is at most one tensor ahead of who receives."""

    def __init__(self, group: dist.ProcessGroup, number: int, step: int) -> None:
        self.group, self.source, self.target = group, number - step, number + step
        self.sent: list[tuple[dist.Work, Tensor]] = []

    def send(self, x: Tensor) -> None:
        """A word that something comes, then what it is, so that who receives knows waiting from receiving."""
        self.settle()
        for message in (x.new_zeros(1), x):
            work = dist.isend(message, group=self.group, group_dst=self.target)
            assert work is not None
            self.sent.append((work, message))

    def receive(self, into: Tensor, receiving: AbstractContextManager[None]) -> Tensor:
        """Both are asked for at once: a sender that computes meanwhile is interrupted once, not twice."""
        word, whole = (self._arriving(x) for x in (into.new_empty(1), into))
        word.wait()
        with receiving:
            whole.wait()
        return into

    def _arriving(self, into: Tensor) -> dist.Work:
        work = dist.irecv(into, group=self.group, group_src=self.source)
        assert work is not None
        return work

    def settle(self) -> None:
        for work, _ in self.sent:
            work.wait()
        self.sent = []


class Elsewhere(nn.Module):
    """A layer, or an end of the model, that another stage has: what comes goes on as it is."""

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        return hidden


def cut(model: M, stage: Stage, head: str) -> M:
    """Keep of a Llama, in place, what the stage has: the first the embedding, the last the norm and `head`. Names stay."""
    inner = model.get_submodule("model")
    layers = inner.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    own = layers_of_chunks(len(layers), stage.count, 1)[stage.number][0]
    for i in set(range(len(layers))) - set(own):
        layers[i] = Elsewhere()
    if not stage.first:
        inner.embed_tokens = Elsewhere()
    if not stage.last:
        inner.norm = Elsewhere()
        setattr(model, head, Elsewhere())
    return model
