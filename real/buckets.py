"""Data parallelism as the plan has it: which gradients are reduced together, and when.

A bucket's collective starts when the last of its gradients is complete (torch's DDP would regroup them after an iteration). ZeRO 1
scatters the sums, steps on its share and gathers the weights again.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import nn

from real.collectives import ALL_GATHER, REDUCE_SCATTER
from real.recorder import Recorder


class Bucket:
    """Parameters whose gradients are one message."""

    def __init__(self, index: int, parameters: Sequence[nn.Parameter], size: int, rank: int, *, sharded: bool) -> None:
        self.index, self.parameters, self.sharded = index, list(parameters), sharded
        count = sum(p.numel() for p in parameters)
        self.padded = -(-count // size) * size if sharded else count
        self.gradients = torch.zeros(self.padded, dtype=parameters[0].dtype, device=parameters[0].device)
        self.views = _views(self.gradients, self.parameters)
        self.missing = 0
        if sharded:
            self.weights = torch.zeros_like(self.gradients)
            for view, parameter in zip(_views(self.weights, self.parameters), self.parameters, strict=True):
                view.copy_(parameter.data)
                parameter.data = view
            share = self.padded // size
            self.shard = nn.Parameter(self.weights[rank * share : (rank + 1) * share].clone())
            self.shard.grad = torch.zeros_like(self.shard)

    @property
    def nbytes(self) -> int:
        return self.gradients.numel() * self.gradients.element_size()

    def pack(self, place: int) -> None:
        """The gradient of the parameter at `place` into the message; from then on it is a view of it."""
        view, parameter = self.views[place], self.parameters[place]
        assert parameter.grad is not None
        if parameter.grad.data_ptr() != view.data_ptr():
            view.copy_(parameter.grad)
            parameter.grad = view


def _views(flat: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    out, at = [], 0
    for parameter in parameters:
        out.append(flat[at : at + parameter.numel()].view_as(parameter))
        at += parameter.numel()
    return out


class BucketReducer:
    """Reduces the plan's buckets over a group; `overlap` does so while backward goes on.

    `task` and `mean` differ between kinds of plans: `task` with i in it names the collective of bucket i, and without `mean` sums
    are left as they are, for losses that were weighted before. Without `task` nothing is sent. Each gradient goes into its bucket
    when it is complete, which what computes it pays for, so that none exists twice.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[Sequence[str]],
        group: dist.ProcessGroup,
        recorder: Recorder,
        *,
        zero: int,
        overlap: bool,
        task: str | None = "grad/s0/bucket{}",
        mean: bool = True,
    ) -> None:
        own = {_plain(name): parameter for name, parameter in model.named_parameters()}
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.group, self.recorder, self.overlap = group, recorder, overlap
        self.task, self.mean = task, mean
        self.buckets = [
            Bucket(i, [own[n] for n in members], self.size, self.rank, sharded=zero == 1)
            for i, members in enumerate(names)
        ]
        self.watcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="watcher")
        self.pending: list[tuple[Bucket, Future[None]]] = []
        self.last = False
        for bucket in self.buckets:
            for place, parameter in enumerate(bucket.parameters):
                parameter.register_post_accumulate_grad_hook(self._hook(bucket, place))

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer steps on."""
        return [b.shard if b.sharded else p for b in self.buckets for p in ([b.shard] if b.sharded else b.parameters)]

    def before_backward(self, *, last: bool) -> None:
        """`last`: the gradients of this backward pass complete the iteration's."""
        self.last = last
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def _hook(self, bucket: Bucket, place: int) -> Callable[[torch.Tensor], None]:
        def ready(_: torch.Tensor) -> None:
            bucket.missing -= 1
            if self.last:
                bucket.pack(place)
            if self.last and self.overlap and bucket.missing == 0:
                self._launch(bucket)

        return ready

    def _launch(self, bucket: Bucket) -> None:
        if self.task is None:
            return
        start = self.recorder.now()
        if bucket.sharded:
            assert bucket.shard.grad is not None
            work = REDUCE_SCATTER(bucket.shard.grad, bucket.gradients, group=self.group, async_op=True)
        else:
            work = dist.all_reduce(bucket.gradients, group=self.group, async_op=True)
        assert work is not None
        ended = self.watcher.submit(self._watch, self.task.format(bucket.index), work, start, bucket.nbytes)
        self.pending.append((bucket, ended))

    def _watch(self, task: str, work: dist.Work, start: "float | torch.cuda.Event", nbytes: int) -> None:
        """Wait in a thread of its own, so that a collective's end is seen when it ends and not when somebody asks."""
        work.wait()
        self.recorder.add(task, start, self.recorder.now(), nbytes)

    def close(self) -> None:
        self.watcher.shutdown()

    def finish(self) -> None:
        """Wait for every bucket; gradients are means, or sums, afterwards."""
        if not self.overlap:
            self.recorder.switch(None)
            for bucket in self.buckets:
                self._launch(bucket)
        for bucket, ended in self.pending:
            ended.result()
            target = bucket.shard.grad if bucket.sharded else bucket.gradients
            assert target is not None
            if self.mean:
                target.div_(self.size)
        self.pending.clear()

    def gather_weights(self) -> None:
        """ZeRO 1: everybody's new shares into everybody's weights."""
        for bucket in self.buckets:
            if bucket.sharded:
                with self.recorder.blocking(f"param/s0/bucket{bucket.index}", bucket.nbytes):
                    ALL_GATHER(bucket.weights, bucket.shard.data, group=self.group)


def _plain(name: str) -> str:
    """A parameter's name without the modules that tensor parallelism put around it."""
    parts: Mapping[str, bool] = dict.fromkeys(("linear", "norm"), True)
    pieces = name.split(".")
    return ".".join(p for i, p in enumerate(pieces) if not (p in parts and i > 3))
