"""What a task is for, in words that reports, pictures and comparisons share."""

import re
from collections.abc import Mapping

from costmodels.checkpoint import is_checkpoint
from simcore.plan import Collective, Compute, Plan, Read, Task, Transfer

COMPUTE, COMMUNICATION, STORAGE = "compute", "communication", "storage"
CLASSES = (COMPUTE, COMMUNICATION, STORAGE)

PHASES: Mapping[str, str] = {"host": "launches", "optimizer": "optimizer", "fwd": "forward", "bwd": "backward"}
ALONG: Mapping[str, str] = {"tp": "tensor parallel", "cp": "context parallel", "ep": "expert parallel"}
_NUMBER = re.compile(r"\d+")


def class_of(task: Task) -> str:
    """`compute`, `communication` or `storage`."""
    if isinstance(task.op, Compute):
        return COMPUTE
    return COMMUNICATION if isinstance(task.op, (Collective, Transfer)) else STORAGE


def part_of(task: Task) -> str:
    """The part of a step: forward, backward, optimizer, gradients, parameters, pipeline, tensor parallel, reads, writes."""
    op, segments = task.op, task.id.split("/")
    if isinstance(op, Compute) and op.kernels and is_checkpoint(op.kernels[0].name):
        return segments[0]  # its roles are called model and optimizer
    if isinstance(op, Compute):
        return next((PHASES[s] for s in segments if s in PHASES), _NUMBER.sub("", segments[0]))
    if isinstance(op, Transfer):
        return "pipeline" if any(s in PHASES for s in segments) else "transfers"
    if isinstance(op, Collective):
        return _collective_part(op, segments)
    return "reads" if isinstance(op, Read) else "writes"


def _collective_part(op: Collective, segments: list[str]) -> str:
    if len(op.along) == 1 and op.along[0] in ALONG:
        return ALONG[op.along[0]]
    if segments[0] == "grad" or op.kind == "reduce_scatter":
        return "gradients"
    return "parameters" if segments[0] == "param" or op.kind == "all_gather" else op.kind


def kind_of(task: Task) -> str:
    """The id with every number as `*`: `m3/s0c1/fwd` and `m4/s2c0/fwd` are both `m*/s*c*/fwd`."""
    return _NUMBER.sub("*", task.id)


def stream_of(task: Task) -> str:
    return task.op.stream


def parts(plan: Plan) -> list[str]:
    """`part_of` each task, by position."""
    return [part_of(task) for task in plan.tasks]
