"""What a trainer holds, as a checkpoint keeps it: weights, and AdamW's moments by the names of the weights."""

from collections.abc import Iterator
from typing import Any

import torch

from real.buckets import Bucket
from real.checkpoint.leaves import FlatSlice
from real.training import Trainer
from simcore.checkpoint.training_states import MODEL, OPTIMIZER

MOMENTS = ("exp_avg", "exp_avg_sq")


def trained_state(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Model and optimizer of a rank, the trainer's own memory. Raises KeyError before its first step, which makes the moments.

    Replicas hold all of it (ZeRO 0); with ZeRO 1 moments are slices of flat buckets; with ZeRO 3 everything is a DTensor.
    """
    model = dict(trainer.model.named_parameters())
    held = _of_buckets(trainer) if trainer.reducer and any(b.sharded for b in trainer.reducer.buckets) else model
    kept = trainer.optimizer.state
    moments: dict[str, Any] = {}
    for name, parameter in held.items():
        for moment in MOMENTS:
            if isinstance(parameter, Bucket):
                moments |= {f"{moment}.{n}": s for n, s in _slices(trainer, parameter, kept[parameter.shard][moment])}
            else:
                moments[f"{moment}.{name}"] = kept[parameter][moment]
    return {MODEL: {name: p.data for name, p in model.items()}, OPTIMIZER: moments}


def _of_buckets(trainer: Trainer) -> dict[str, Bucket]:
    assert trainer.reducer is not None
    return {str(bucket.index): bucket for bucket in trainer.reducer.buckets}


def _slices(trainer: Trainer, bucket: Bucket, moment: torch.Tensor) -> Iterator[tuple[str, FlatSlice]]:
    """This rank's share of a bucket as slices of the parameters in it."""
    assert trainer.reducer is not None
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    size = moment.numel()
    first, begin = trainer.reducer.rank * size, 0
    for parameter in bucket.parameters:
        start, stop = max(begin, first), min(begin + parameter.numel(), first + size)
        if start < stop:
            piece = moment[start - first : stop - first]
            yield names[id(parameter)], FlatSlice(piece, tuple(parameter.shape), start - begin)
        begin += parameter.numel()
