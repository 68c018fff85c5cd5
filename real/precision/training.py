"""One rank of a plan of `operator_training`: its operators in the precisions of its group, with a span for each of their tasks."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from costmodels.precision import Way
from real.buckets import BucketReducer
from real.precision.allocations import standing
from real.precision.batches import on_device
from real.precision.binding import bind
from real.precision.materials import Materials
from real.precision.models import build
from real.precision.placing import computing, place_of
from real.recorder import Recorder
from simcore.plan import Plan

SHORT: dict[Way, str] = {"forward": "fwd", "backward": "bwd"}
RATES = {"sgd": 0.02, "adamw": 1e-3}
"""Learning rates of the optimizers that a plan may name."""


class Spans:
    """Hands what an observer is told to the recorder: a task computes until the next begins, so that nothing is left out.

    Operators without a task of their own (views) belong to the one before them.
    """

    def __init__(self, group: str, tasks: Collection[str], recorder: Recorder) -> None:
        self.group, self.tasks, self.recorder = group, tasks, recorder

    def begin(self, operator: str, way: Way) -> None:
        task = f"{self.group}/{SHORT[way]}/{operator}"
        if task in self.tasks:
            self.recorder.switch(task)

    def end(self, operator: str, way: Way) -> None:
        """The next one's beginning says it."""


class OperatorTrainer:
    """The plan bound to a model, its data and its optimizer. `has` are the precisions of this rank's device.

    Without `communicate`, gradients go into their buckets and stay there: computing is profiled by itself.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        recorder: Recorder,
        has: Collection[str],
        materials: Materials,
        *,
        communicate: bool = True,
    ) -> None:
        chosen, work = plan.decisions, plan.workload
        self.recorder, self.device, self.place = recorder, device, place_of(plan, dist.get_rank())
        torch.manual_seed(int(work["seed"]))
        self.model = build(work["model"])
        self.model.module.to(device).train()
        rounding = chosen.get("rounding", "nearest")
        generator = torch.Generator().manual_seed(int(work["seed"]) + dist.get_rank())
        self.bound = bind(
            self.model.module,
            materials.graph,
            chosen["precision"][self.place.group],
            has,
            rounding=rounding,
            scaling=chosen.get("scaling", "tensor"),
            generator=generator if rounding == "stochastic" else None,
            observer=Spans(self.place.group, computing(plan), recorder),
        )
        self.reducer = BucketReducer(
            self.model.module,
            chosen["buckets"],
            dist.group.WORLD,
            recorder,
            zero=0,
            overlap=True,
            task="grad/bucket{}" if plan.n_ranks > 1 and communicate else None,
            mean=False,
        )
        self.optimizer = _optimizer(work, self.model.module)
        self.batches = materials.batches
        torch.manual_seed(int(work["seed"]) + 1 + dist.get_rank())  # dropout differs from rank to rank
        self.batch: tuple[Any, Any] | None = None

    def prepare(self) -> None:
        """Fetch the next batch, as a data loader does beside training."""
        self.batch = on_device(self.batches.next(), self.device)

    def iteration(self) -> float:
        """One step; returns this rank's part of the mean loss, times the number of ranks."""
        assert self.batch is not None
        inputs, targets = self.batch
        share = self.place.count / self.place.total
        self.reducer.before_backward(last=True)
        with self.bound:
            loss = self.model.objective(inputs, targets)
        (loss * share).backward()
        self.recorder.switch(None)
        self.reducer.finish()
        self.recorder.switch(f"{self.place.group}/optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.recorder.switch(None)
        return float(loss.detach()) * share * dist.get_world_size()

    def standing(self) -> list[torch.Tensor]:
        """Tensors that exist between iterations."""
        return standing(self.model.module, self.optimizer, [b.gradients for b in self.reducer.buckets])

    def close(self) -> None:
        """End what does not end by itself."""
        self.reducer.close()
        self.bound.close()


def _optimizer(work: Mapping[str, Any], module: nn.Module) -> torch.optim.Optimizer:
    parameters, rate = list(module.parameters()), RATES[work["optimizer"]]
    if work["optimizer"] == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, fused=True)
    return torch.optim.SGD(parameters, lr=rate, momentum=float(work.get("momentum", 0.0)), fused=True)
