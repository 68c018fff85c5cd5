"""Order of forward and backward passes on the stages of a pipeline, and which layers each stage holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pass:
    """One microbatch through one chunk of a stage."""

    forward: bool
    microbatch: int
    chunk: int


def stage_order(stage: int, stages: int, chunks: int, microbatches: int) -> list[Pass]:
    """What one stage does in an iteration: 1F1B, with several chunks interleaved.

    After as many forward passes as it takes until the first gradient comes back, forward and backward take turns
    (Narayanan et al. 2021, sections 2.2.1 and 2.2.2). Microbatches go through the chunks in groups of `stages`.
    """
    forwards = _chunk_order(stages, chunks, microbatches)
    backwards = [(m, chunks - 1 - c) for m, c in forwards]
    warm_up = min(warm_up_passes(stage, stages, chunks), len(forwards))
    order = [Pass(True, m, c) for m, c in forwards[:warm_up]]
    for (m, c), (n, d) in zip(forwards[warm_up:], backwards, strict=False):
        order += [Pass(True, m, c), Pass(False, n, d)]
    return order + [Pass(False, m, c) for m, c in backwards[len(forwards) - warm_up :]]


def warm_up_passes(stage: int, stages: int, chunks: int) -> int:
    """Forward passes before the first backward one."""
    if chunks == 1:
        return stages - stage - 1
    return 2 * (stages - stage - 1) + (chunks - 1) * stages


def _chunk_order(stages: int, chunks: int, microbatches: int) -> list[tuple[int, int]]:
    """(microbatch, chunk) of forward passes in order."""
    order = []
    for first in range(0, microbatches, stages):
        group = range(first, min(first + stages, microbatches))
        order += [(m, c) for c in range(chunks) for m in group]
    return order


def pipeline_order(stages: int, chunks: int, microbatches: int) -> Iterator[tuple[int, Pass]]:
    """(stage, pass) of all stages merged so that every pass comes after the one whose result it needs.

    Forward needs the chunk before, backward the chunk behind and its own forward. A microbatch goes through chunk 0 of all stages,
    then chunk 1, ...
    """
    orders = [stage_order(s, stages, chunks, microbatches) for s in range(stages)]
    position = [0] * stages
    done: set[tuple[bool, int, int]] = set()  # (forward, microbatch, virtual stage)
    last = stages * chunks - 1
    left = sum(map(len, orders))
    while left:
        before = left
        for s, order in enumerate(orders):
            while position[s] < len(order):
                step = order[position[s]]
                at = step.chunk * stages + s
                need = (True, step.microbatch, at - 1) if step.forward else (False, step.microbatch, at + 1)
                if at == last and not step.forward:
                    need = (True, step.microbatch, at)
                if not (step.forward and at == 0) and need not in done:
                    break
                done.add((step.forward, step.microbatch, at))
                position[s] += 1
                left -= 1
                yield s, step
        assert left < before, "the stages wait for each other"


def layers_of_chunks(layers: int, stages: int, chunks: int, *, ends_count: bool = False) -> list[list[range]]:
    """Layers by stage and chunk: consecutive runs, dealt to the stages in turn.

    With `ends_count` embedding and head take the place of one layer each, so that the first and the last chunk hold one less
    (Llama 3, section 3.3.2).
    """
    places = layers + 2 if ends_count else layers
    assert places % (stages * chunks) == 0
    each, shift = places // (stages * chunks), 1 if ends_count else 0

    def run(at: int) -> range:
        return range(max(at * each - shift, 0), min((at + 1) * each - shift, layers))

    return [[run(c * stages + s) for c in range(chunks)] for s in range(stages)]


def peak_passes(order: Sequence[Pass]) -> int:
    """Most forward passes whose backward pass has not ended, over the order of one stage."""
    held = peak = 0
    for step in order:
        held += 1 if step.forward else -1
        peak = max(peak, held)
    return peak
