"""Which gradients of a pipeline stage are reduced together, and after which passes."""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodels import memory
from costmodels.kernels import WIDTH_B
from costmodels.transformer import EMBEDDING, POSITIONS
from simcore.buckets import assign
from simcore.training.choice import Choice
from simcore.training.chunk_sizes import ChunkSizes, Piece
from simcore.training.schedule import Pass, stage_order
from simcore.workloads.transformer_training import TransformerTraining


@dataclass(frozen=True, slots=True)
class Bucket:
    """Gradients of one chunk. `closes` is the piece that makes the last of them in a backward pass (embed, layer3, head);
    `microbatches` are those after which they are reduced, in order."""

    number: int
    chunk: int
    names: tuple[str, ...]
    elements: int
    closes: str
    microbatches: tuple[int, ...]


def stage_buckets(workload: TransformerTraining, choice: Choice, sizes: ChunkSizes, stage: int) -> list[Bucket]:
    """The buckets of one stage in the order of their last reduction; none where there is nothing to reduce or ZeRO 3 does it."""
    found: list[Bucket] = []
    if choice.zero == 3 or choice.shards == 1:
        return found
    order = stage_order(stage, choice.pp, choice.vpp, choice.microbatches(workload))
    passes = reduction_passes(order, choice)
    width = WIDTH_B[memory.gradient_dtype(workload.precision, master_weights=choice.master_weights)]
    for chunk in reversed(range(choice.vpp)):
        piece = sizes.chunks[stage][chunk]
        size = {
            p[0]: memory.local_size(p, choice.tp, vocab_parallel=choice.vocab_parallel) for p in sizes.parameters(piece)
        }
        first_B = choice.bucket_B if found else choice.first_bucket_B
        for names in assign([(n, int(width * s)) for n, s in size.items()], first_B, choice.bucket_B):
            elements = sum(size[n] for n in names)
            closes = closing_piece(names, piece)
            found.append(Bucket(len(found), chunk, tuple(names), elements, closes, passes[chunk]))
    return found


def closing_piece(names: Sequence[str], piece: Piece) -> str:
    """The last piece that a backward pass comes to among those that the parameters belong to."""
    last_first = [name for name, _ in piece.split()]
    return min((_home(name, piece) for name in names), key=last_first.index)


def _home(name: str, piece: Piece) -> str:
    if name.startswith("model.layers."):
        return f"layer{name.split('.')[2]}"
    return "embed" if name in (EMBEDDING, POSITIONS) and piece.embed else "head"


def reduction_passes(order: Sequence[Pass], choice: Choice) -> list[tuple[int, ...]]:
    """For each chunk the microbatches after whose backward pass its gradients are reduced.

    The last one; with ZeRO 2, which keeps no sums of whole gradients, every time the stage turns to another chunk, and
    where it has only one chunk after every microbatch.
    """
    backward = [step for step in order if not step.forward]
    final = max(step.microbatch for step in backward)
    early = choice.zero == 2 and choice.overlap
    found: list[list[int]] = [[] for _ in range(choice.vpp)]
    for step, following in zip(backward, [*backward[1:], None], strict=True):
        leaves = choice.vpp == 1 or following is None or following.chunk != step.chunk
        if step.microbatch == final or (early and leaves):
            found[step.chunk].append(step.microbatch)
    return [tuple(microbatches) for microbatches in found]
