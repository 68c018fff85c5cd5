"""A batch through a rank's stage in portions: passes that score, passes that train in the order of 1F1B, and what follows them."""

from collections.abc import Callable

import torch
from torch import Tensor

from real.rlhf.part import Part
from real.rlhf.stages import Stage
from simcore.training.schedule import stage_order

Run = Callable[[Tensor, slice], Tensor]
"""What a stage makes of its input of some rows, tokens on the first stage and hidden states (n, length, width) on others: hidden
states for the next, on the last stage numbers (n, ...) or a loss."""


@torch.no_grad()
def score(part: Part, stage: Stage, tokens: Tensor, run: Run) -> Tensor:
    """What the last stage makes of all `tokens`; (0,) on others. Without a pipeline all portions are one task."""
    found = []
    for m, rows in enumerate(_portions(len(tokens), part.portions.forward_microbatch, stage)):
        task = f"m{m if stage.count > 1 else 0}/s{{s}}/fwd"
        _, made = _forward(stage, tokens, rows, task, run)
        if stage.last:
            found.append(made)
    stage.settle()
    return torch.cat(found) if found else torch.empty(0)


def gradients(part: Part, stage: Stage, tokens: Tensor, run: Run) -> str:
    """Those of the sum of the losses of all portions; there are none before. Returns the task of the pass that completed them."""
    portions = _portions(len(tokens), part.portions.microbatch, stage)
    held: dict[int, tuple[Tensor, Tensor]] = {}
    for step in stage_order(stage.number, stage.count, 1, len(portions)):
        m = step.microbatch
        if step.forward:
            held[m] = _forward(stage, tokens, portions[m], f"m{m}/s{{s}}c0/fwd", run)
        else:
            _backward(stage, *held.pop(m), f"m{m}/s{{s}}c0/bwd")
    stage.settle()
    return f"m{len(portions) - 1}/s{stage.number}c0/bwd"


def step(stage: Stage, optimizer: torch.optim.Optimizer) -> None:
    """Of the optimiser; gradients are gone after it."""
    stage.spans.part(f"optimizer/s{stage.number}")
    optimizer.step()
    optimizer.zero_grad()
    stage.spans.part(None)


def _portions(size: int, each: int | None, stage: Stage) -> list[slice]:
    """Of `each` rows, the last of what is left; by default as many as there are stages."""
    each = each or max(-(-size // stage.count), 1)
    return [slice(first, min(first + each, size)) for first in range(0, size, each)]


def _forward(stage: Stage, tokens: Tensor, rows: slice, task: str, run: Run) -> tuple[Tensor, Tensor]:
    """Input and output of a pass."""
    given = tokens[rows]
    if not stage.first:
        hidden = torch.empty(*given.shape, stage.width, device=given.device)
        given = stage.receive(hidden, task, ahead=True).requires_grad_(torch.is_grad_enabled())
    stage.spans.part(task.format(s=stage.number))
    made = run(given, rows)
    if not stage.last:
        stage.send(made, ahead=True)
    return given, made


def _backward(stage: Stage, given: Tensor, made: Tensor, task: str) -> None:
    """From the loss, or from the gradient of what the pass made, to the gradient of what it was given."""
    grad = None if stage.last else stage.receive(torch.empty(made.shape, device=made.device), task, ahead=False)
    stage.spans.part(task.format(s=stage.number))
    torch.autograd.backward(made, grad)
    if not stage.first:
        assert given.grad is not None
        stage.send(given.grad, ahead=False)
