"""In which order a pipeline stage works: 1F1B and its interleaved form (Narayanan et al. 2021, sections 2.2 and 3.2)."""

from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """One pass of microbatch `microbatch` through chunk `chunk` of a stage."""

    forward: bool
    microbatch: int
    chunk: int


def stage_steps(stage: int, stages: int, chunks: int, microbatches: int) -> list[Step]:
    """The steps of one stage: some forward passes to fill the pipeline, one forward and one backward in turn, the rest backward."""
    total = microbatches * chunks
    if chunks == 1:
        warm = min(stages - stage - 1, total)
    else:
        warm = total if microbatches == stages else min((stages - stage - 1) * 2 + (chunks - 1) * stages, total)
    forward = [Step(True, *_position(i, stages, chunks)) for i in range(total)]
    backward = [Step(False, m, chunks - 1 - c) for m, c in (_position(i, stages, chunks) for i in range(total))]
    steps = forward[:warm]
    for i in range(total - warm):
        steps += [forward[warm + i], backward[i]]
    return steps + backward[total - warm :]


def _position(i: int, stages: int, chunks: int) -> tuple[int, int]:
    """Microbatch and chunk of the i-th pass: `stages` microbatches through one chunk, then the same through the next."""
    if chunks == 1:
        return i, 0
    group, within = divmod(i, stages * chunks)
    chunk, microbatch = divmod(within, stages)
    return group * stages + microbatch, chunk


def merged(orders: Sequence[Sequence[Step]]) -> list[tuple[int, Step]]:
    """All stages' steps in one order that respects what each waits for: (stage, step).

    A chunk on stage s is virtual stage chunk * stages + s. Forward waits for the virtual stage before, backward for the one after
    and for its own forward. Raises `AssertionError` for orders that wait in a circle.
    """
    stages = len(orders)
    last = max((step.chunk for order in orders for step in order), default=0) * stages + stages - 1
    done: set[tuple[bool, int, int]] = set()
    at = [0] * stages
    out: list[tuple[int, Step]] = []
    while len(out) < sum(len(order) for order in orders):
        before = len(out)
        for stage, order in enumerate(orders):
            while at[stage] < len(order) and _ready(order[at[stage]], stage, stages, last, done):
                step = order[at[stage]]
                done.add((step.forward, step.microbatch, step.chunk * stages + stage))
                out.append((stage, step))
                at[stage] += 1
        assert len(out) > before, "a schedule that waits for itself"
    return out


def _ready(step: Step, stage: int, stages: int, last: int, done: set[tuple[bool, int, int]]) -> bool:
    virtual = step.chunk * stages + stage
    if step.forward:
        return virtual == 0 or (True, step.microbatch, virtual - 1) in done
    own = (True, step.microbatch, virtual) in done
    return own and (virtual == last or (False, step.microbatch, virtual + 1) in done)


def layers_of_chunks(layers: int, chunks: int) -> list[int]:
    """Layers of each virtual stage. What does not divide is taken from the first and the last, which hold the vocabulary, then
    from the ones after the first (Grattafiori et al. 2024, section 3.3.2, do so for 126 layers on 16 stages)."""
    share = -(-layers // chunks)
    out = [share] * chunks
    order = [0, chunks - 1, *range(1, chunks - 1)]
    for i in range(share * chunks - layers):
        out[order[i % chunks]] -= 1
    return out
