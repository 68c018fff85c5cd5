"""What a plan of checkpoints plays on one rank: saves by themselves, loads by themselves, or a save with training beside it."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from costmodels.transformer import TransformerShape
from real.checkpoint.checkpointer import Checkpointer
from real.checkpoint.errors import CheckpointError
from real.checkpoint.finishing import Saving
from real.checkpoint.ranks import own_group
from real.checkpoint.spans import Span, Spans, own_tasks
from real.checkpoint.states import State, leaves, number_of, state_of
from real.checkpoint.storage import Local
from real.checkpoint.trained import trained_state
from real.checkpoint.warming import WARM_LOADS, WARM_SAVES, forget
from real.checkpoint.watching import Log, WatchedRanks, WatchedStorage
from real.precision.allocations import peak_B
from real.recorder import Recorder
from real.training import Trainer, mesh_of, start_libraries
from real.worker import WARM_UP
from simcore.checkpoint.systems import SYSTEMS
from simcore.checkpoint.training_states import mesh_of as ranks_of
from simcore.errors import Problem
from simcore.plan import Plan
from simcore.training.choice import Choice
from simcore.workloads.transformer_training import TransformerTraining

Bound = tuple[float, float]


def workload_of(plan: Plan) -> TransformerTraining:
    """What was planned for."""
    work = plan.workload
    model = TransformerShape(**work["model"])
    return TransformerTraining(
        model=model, seq_len=work["seq_len"], global_batch=work["global_batch"], precision=work["precision"]
    )


def choice_of(plan: Plan, degrees: str = "parallelism") -> Choice:
    """The parallelism of the plan's ranks, or with `saved_parallelism` of those who saved what the plan loads."""
    chosen = plan.decisions
    names = ("zero", "microbatch", "master_weights", "detail")
    return Choice(**chosen[degrees], **{name: chosen[name] for name in names})


@dataclass(slots=True)
class Watched:
    """A checkpointer of the plan's kind whose calls are logged."""

    plan: Plan
    root: Path
    log: Log = field(default_factory=Log)
    checkpointer: Checkpointer = field(init=False)
    spans: Spans = field(init=False)
    step: int = 0

    def __post_init__(self) -> None:
        self.checkpointer = Checkpointer(
            WatchedStorage(Local(self.root), self.log),
            ranks=WatchedRanks(own_group(), self.log),
            background=WatchedRanks(own_group(), self.log),
            threads=int(self.plan.decisions["checkpoint"]["streams"]),
            keep=1,  # a save writes over the files of the one before the last, as in any job that keeps some
        )
        self.spans = Spans(own_tasks(self.plan, dist.get_rank()))

    @property
    def asynchronous(self) -> bool:
        """Whether the plan's saves are."""
        return SYSTEMS[self.plan.decisions["checkpoint"]["system"]].asynchronous

    def save(self, state: Any) -> Saving:
        """One more save; it may still be going on."""
        self.step += 1
        return self.checkpointer.save(state, step=self.step, asynchronous=self.asynchronous)

    def saved(self, saving: Saving, start_s: float) -> list[Span]:
        """Spans of a save that has ended."""
        written: dict[str, int] = {}
        for call in self.log.calls:
            if call.what == "write":
                role = call.file.partition("-")[0]
                written[role] = written.get(role, 0) + call.nbytes
        return self.spans.saved(self.log.calls, start_s, saving.phases_s, written)

    def start(self) -> float:
        """The time at which all ranks begin."""
        dist.barrier()
        self.log.calls.clear()
        return time.perf_counter()


class Saves:
    """A save with nobody training beside it."""

    def __init__(self, plan: Plan, device: torch.device, root: Path, choice: Choice) -> None:
        flat = not plan.decisions["checkpoint"]["rows"]
        self.state = state_of(workload_of(plan), choice, dist.get_rank(), flat=flat, device=device)
        self.watched = Watched(plan, root)

    def warm(self) -> None:
        """Save until the plan is kept, memory was touched, and there are files to write over."""
        for _ in range(WARM_SAVES):
            self.once(-1)

    def once(self, _iteration: int) -> tuple[Bound, list[Span]]:
        """Start and end of a save, and its spans."""
        start = self.watched.start()
        saving = self.watched.save(self.state)
        saving.wait()
        bound = start, time.perf_counter()
        return bound, self.watched.saved(saving, start)

    def tensors_B(self) -> int | None:
        """Bytes of the state."""
        return size_B(self.state)


def size_B(state: State) -> int:
    """Bytes of all tensors of a rank."""
    return sum(memory.numel() * memory.element_size() for _, memory in leaves(state))


class Loads:
    """A load from the store, whatever the system may have kept of it in memory."""

    def __init__(self, plan: Plan, device: torch.device, root: Path) -> None:
        choice, saved = choice_of(plan), choice_of(plan, "saved_parallelism")
        if saved.n_ranks == choice.n_ranks:
            Saves(plan, device, root, saved).once(0)
        flat = not plan.decisions["checkpoint"]["rows"]
        self.state = state_of(workload_of(plan), choice, dist.get_rank(), flat=flat, device=device)
        self.watched, self.root = Watched(plan, root), root
        self.groups = ranks_of(choice).dp_groups().tolist()

    def warm(self) -> None:
        """Load until libraries are there and memory was touched."""
        for _ in range(WARM_LOADS):
            self.once(-1)

    def once(self, _iteration: int) -> tuple[Bound, list[Span]]:
        """Start and end of a load, and its spans. Raises CheckpointError where a tensor is not what was saved."""
        for _, memory in leaves(self.state):
            memory.zero_()
        if dist.get_rank() == 0:
            forget(self.root)
        start = self.watched.start()
        self.watched.checkpointer.load(self.state, read_groups=self.groups)
        bound = start, time.perf_counter()
        spans = self.watched.spans.loaded(self.watched.log.calls, *bound)
        wrong = [name for name, memory in leaves(self.state) if memory.numel() and not _filled(memory, number_of(name))]
        if wrong:
            raise CheckpointError(
                "a load gave back something else", [Problem(n, "other values", "saved ones") for n in wrong]
            )
        return bound, spans

    def tensors_B(self) -> int | None:
        """Bytes of the state."""
        return size_B(self.state)


def _filled(memory: torch.Tensor, number: float) -> bool:
    low, high = memory.aminmax()
    return float(low) == float(high) == number


class _InIteration(Recorder):
    """Spans of training under the names that iterations beside a save have."""

    number = 0

    def add(self, task: str, start: Any, end: Any, nbytes: int = 0) -> None:
        Recorder.add(self, f"{task}/it{self.number}", start, end, nbytes)


class Training:
    """A save, and iterations of training that start as soon as it lets them."""

    def __init__(self, plan: Plan, device: torch.device, root: Path) -> None:
        start_libraries(plan, device)
        self.recorder = _InIteration(cuda=device.type == "cuda")
        self.trainer = Trainer(plan, mesh_of(plan, device), self.recorder)
        self.count = int(plan.workload["trained_iterations"])
        self.watched = Watched(plan, root)
        self.losses = [self._train() for _ in range(WARM_UP)]

    def warm(self) -> None:
        """Save until that is as it will be later."""
        for _ in range(WARM_SAVES):
            self.watched.start()
            self.watched.save(trained_state(self.trainer)).wait()

    def _train(self) -> float:
        self.trainer.prepare()
        return self.trainer.iteration()

    def once(self, iteration: int) -> tuple[Bound, list[Span]]:
        """Start and end of the save and the iterations beside it; spans of training are in the recorder."""
        start, origin = self.watched.start(), self.recorder.now()
        saving = self.watched.save(trained_state(self.trainer))
        self.recorder.iteration = iteration
        for number in range(self.count):
            self.recorder.number = number
            self.losses.append(self._train())
        self.recorder.iteration = -1
        saving.wait()
        if not isinstance(origin, float):
            self.recorder.resolve(origin, start)
        return (start, time.perf_counter()), self.watched.saved(saving, start)

    def tensors_B(self) -> int | None:
        """The most bytes of tensors in an iteration of training, which is run once more; None where FSDP2 keeps them."""
        standing = None if self.recorder.cuda else self.trainer.standing()
        self.trainer.prepare()
        return None if standing is None else peak_B(self.trainer.iteration, standing)
