"""What passes of whole models take, by a process of a calibration and of a probe of the machine's pace (`real.pace`)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
from torch.nn import functional

from real.calibrate_eager import mean_of_ranks, slowest_of_ranks
from real.microbench import mean_and_spread
from real.model import build_model

SEQUENCES, SEQ_LEN = 8, 128
FEW = 1
"""Sequences of another microbatch, in which the host's own time counts for more."""
MODELS = (
    {"layers": 3, "hidden": 192, "ffn": 512, "heads": 3, "head_dim": 64, "vocab": 256, "max_len": SEQ_LEN},
    {"layers": 2, "hidden": 384, "ffn": 1024, "heads": 6, "head_dim": 64, "vocab": 256, "max_len": SEQ_LEN},
)
"""What kernels take inside a model is compared with what they take alone, at the same sizes, on these."""
MEASURED = tuple((shape, sequences) for shape in MODELS for sequences in (SEQUENCES, FEW))
WARM_UP = 3
TURN_S = 0.4
"""Of one model after the other: a core that is slow for ten seconds is slow for passes of all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Forward and backward, until the last rank is done, for which synchronous training waits, and both on a rank by itself."""

    forward_s: float
    backward_s: float
    own_s: float

    @property
    def both_s(self) -> float:
        return self.forward_s + self.backward_s


def model_passes(at_least_s: float, warm_up: int) -> list[Passes]:
    """Of each of `MEASURED`, for so long each: means over repeats, without the slowest twentieth; forward and backward in shares
    that all ranks have together.

    All in turn, and then again, so that they are measured on one machine: it is not as fast as half a minute before.
    """
    timed = [_Timed(shape, sequences) for shape, sequences in MEASURED]
    turns = max(round(at_least_s / TURN_S), 3)
    times = [max(int(at_least_s / turns / one.warm_up_s(warm_up)), 1) for one in timed]
    found: list[list[_Took]] = [[] for _ in timed]
    for _ in range(turns):
        for took, one, n in zip(found, timed, times, strict=True):
            took += (one.once() for _ in range(n))
    return [_usual(took) for took in found]


_Took = tuple[float, float, float]
"""The share of forward, seconds of both on this rank, and until the last is done."""


class _Timed:
    """A model, and something to learn from."""

    def __init__(self, shape: Mapping[str, int], sequences: int) -> None:
        self._model = build_model({**shape, "kv_heads": shape["heads"], "tied_embeddings": False}, "float32", 0)
        self._tokens = torch.randint(0, shape["vocab"], (sequences, SEQ_LEN + 1))

    def warm_up_s(self, times: int) -> float:
        """Seconds of the last of so many passes, which do not count."""
        return [self.once() for _ in range(times)][-1][-1]

    def once(self) -> _Took:
        """A pass forward and backward that all ranks begin together."""
        dist.barrier()
        start = time.perf_counter()
        logits = self._model(self._tokens[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), self._tokens[:, 1:].flatten())
        forward_s = time.perf_counter() - start
        loss.backward()
        self._model.zero_grad(set_to_none=True)
        own_s = time.perf_counter() - start
        return forward_s / own_s, own_s, slowest_of_ranks(own_s)


def _usual(took: Sequence[_Took]) -> Passes:
    shares, own, both = zip(*took, strict=True)
    own_s, both_s = (mean_and_spread(list(seconds))[0] for seconds in (own, both))
    forward = mean_of_ranks(median(shares))
    return Passes(forward_s=both_s * forward, backward_s=both_s * (1.0 - forward), own_s=mean_of_ranks(own_s))
