"""What generation costs on a pool: sequences over replicas, continuous batching in each, prefills and decode steps by `serving`.

A replica's KV cache limits how many sequences it has at a time, so that a small t_g starves: its replicas hold more weights and
have less room. A replica has no more than `max_num_seqs` at a time and a step costs its host's time, so that a large t_g with few
replicas takes more steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import floor, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from costmodels import generation, generation_eager
from costmodels.batching import Segments, padded_segments, segments_of
from costmodels.kernels import WIDTH_B
from costmodels.serving import Served
from costmodels.transformer import TransformerShape, total_elements
from simcore.hybridflow.zones import Zone
from simcore.workloads.rlhf import Rlhf

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BATCHES, LENGTHS = 20, 5
"""Sizes of the grid of decode steps that is priced; between them seconds are interpolated."""
PREFILL_TOKENS = 8192
"""Tokens of prompts that are read at once (assumption: vLLM reads as many as it may; beyond a few thousand time is linear)."""
CACHE_STEP = 1.03
"""Caches within this factor of each other are taken for equal, the smaller one."""


class Degrees(NamedTuple):
    """Ranks of a generation replica: `tp` share each layer, `pp` the layers."""

    tp: int
    pp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Seconds of a pass of generation: of the replica that ends last, and of all on average; sequences that a replica has at most
    at a time, and how often a prompt is read (above 1 where the cache was full and sequences were computed again)."""

    seconds: float
    mean_s: float
    concurrent: int
    reads: float


class GenerationCosts:
    """Generation by one role in one zone; what was found is kept."""

    def __init__(self, workload: Rlhf, role: str, zone: Zone) -> None:
        self.workload, self.zone = workload, zone
        self.shape: TransformerShape = workload.models[role]
        self.width = WIDTH_B[workload.precision]
        self.parameters = total_elements(self.shape)
        self.longest = int((workload.prompt_len + workload.response_len).max())
        self._steps: dict[tuple[Degrees, float], Steps] = {}
        self._needs: dict[int, tuple[list[tuple[Ints, Ints]], int]] = {}
        self._least: dict[tuple[int, Degrees], float] = {}
        self._found: dict[tuple[int, Degrees, int], Generated | None] = {}

    def weights_B(self, degrees: Degrees) -> float:
        """Bytes of weights on one rank."""
        return self.width * self.parameters / (degrees.tp * degrees.pp)

    def token_B(self, degrees: Degrees) -> float:
        """Bytes of a token's keys and values on one rank; a rank has at least one head."""
        heads = max(self.shape.kv_heads / degrees.tp, 1.0)
        return 2.0 * self.width * self.shape.layers * heads * self.shape.head_dim / degrees.pp

    def allowed(self, degrees: Degrees) -> bool:
        """Whether heads and layers divide, and the engine has pipelines, which `generate` of Hugging Face has not."""
        if degrees.pp > 1 and self.workload.generation.padded:
            return False
        by_heads = self.shape.heads % degrees.tp == 0
        return by_heads and self.shape.layers % degrees.pp == 0 and degrees.tp <= self.zone.per_node

    def beside(self, n: int) -> float:
        """Share of the host's other ranks that compute while a pool of `n` ranks generates: those of its own pool, since whatever
        another pool may do waits for the answers."""
        return min((n - 1) / (self.zone.per_node - 1), 1.0) if self.zone.per_node > 1 else 1.0

    def replicas(self, n: int, degrees: Degrees) -> list[tuple[Ints, Ints]]:
        """Lengths of prompts and responses of each replica; sequences are dealt out one by one."""
        work, number = self.workload, n // (degrees.tp * degrees.pp)
        return [(work.prompt_len[i::number], work.response_len[i::number]) for i in range(number)]

    def found(self, n: int, degrees: Degrees, cache_B: float) -> Generated | None:
        """Generation on `n` ranks with `cache_B` bytes of KV cache on each; None where the longest sequence has no room."""
        tokens = self.cache_tokens(n, degrees, cache_B)
        key = (n, degrees, tokens)
        if key not in self._found:
            self._found[key] = self._generate(n, degrees, tokens)
        return self._found[key]

    def least_s(self, n: int, degrees: Degrees) -> float:
        """Seconds with a cache that is never full: nothing is faster."""
        key = (n, degrees)
        if key not in self._least:
            found = self.found(n, degrees, float("inf"))
            assert found is not None
            self._least[key] = found.seconds
        return self._least[key]

    def cache_tokens(self, n: int, degrees: Degrees, cache_B: float) -> int:
        """Room for tokens in a replica, rounded down; what all of its sequences need is enough."""
        enough = max(self._extreme(n, degrees)[1], self._least_tokens(n, degrees))
        have = cache_B / self.token_B(degrees)
        if have >= enough or have < 1.0:
            return enough if have >= enough else 0
        return int(CACHE_STEP ** floor(log(have) / log(CACHE_STEP)))

    def _generate(self, n: int, degrees: Degrees, cache_tokens: int) -> Generated | None:
        each, _ = self._extreme(n, degrees)
        if self._least_tokens(n, degrees) > cache_tokens:
            return None
        batched = [self.segments(p, r, cache_tokens) for p, r in each]
        steps = self.steps(degrees, self.beside(n))
        seconds = [steps.seconds(s) for s in batched]
        sequences = len(each[0][0])
        return Generated(
            seconds=max(seconds),
            mean_s=float(np.mean(seconds)),
            concurrent=int(max(s.batch.max() for s in batched)),
            reads=float(batched[0].prompts.sum() / sequences),
        )

    def _least_tokens(self, n: int, degrees: Degrees) -> int:
        """Room for tokens that a replica cannot do without: of its longest sequence, or of all that it answers at once."""
        if not self.workload.generation.padded:
            return self.longest + 1
        sequences = -(-self.workload.sequences // (n // (degrees.tp * degrees.pp)))
        return self.longest * min(sequences, self.workload.generation.max_num_seqs)

    def _extreme(self, n: int, degrees: Degrees) -> tuple[list[tuple[Ints, Ints]], int]:
        """Replicas one of which ends last: the one with most tokens, and the one with the longest response; and the tokens of the
        fullest, with a step of everybody."""
        number = n // (degrees.tp * degrees.pp)
        if number not in self._needs:
            found = [r for r in _extremes(self.replicas(n, degrees)) if len(r[0])]
            self._needs[number] = found, max(int(p.sum() + r.sum()) + 2 * len(p) for p, r in found)
        return self._needs[number]

    def segments(self, prompt_len: Ints, response_len: Ints, cache_tokens: float) -> Segments:
        """Continuous batching of one replica; or all at once, padded to the longest."""
        slots = self.workload.generation.max_num_seqs
        if self.workload.generation.padded:
            return padded_segments(prompt_len, response_len, slots)
        return segments_of(prompt_len.tolist(), response_len.tolist(), slots=slots, cache_tokens=cache_tokens)

    def steps(self, degrees: Degrees, beside: float) -> "Steps":
        """What prefills and decode steps of one replica take, `beside` a share of the host's other ranks."""
        key = (degrees, beside)
        if key not in self._steps:
            work, device = self.workload, generation_eager.beside(self.zone.device, beside)
            one = generation.served_by(
                work.generation.engine, self.shape, device, work.precision, degrees.tp, degrees.pp
            )
            most = min(work.generation.max_num_seqs, work.sequences)
            self._steps[key] = Steps(one, most, self.longest, float(work.prompt_len.mean()))
        return self._steps[key]


@dataclass(frozen=True)
class Steps:
    """Prices of one replica's steps, on a grid of batch sizes and lengths that is priced once."""

    one: Served
    most: int
    longest: int
    prompt: float

    @cached_property
    def _grid(self) -> tuple[Floats, Floats, Floats]:
        batch = np.unique(np.rint(np.geomspace(1, self.most, BATCHES)))
        kv = np.linspace(1, max(self.longest, 2), LENGTHS)
        b, k = np.meshgrid(batch, kv, indexing="ij")
        return batch, kv, generation.decode_s(self.one, b.ravel(), k.ravel()).reshape(b.shape)

    @cached_property
    def _token_s(self) -> float:
        """Seconds of a token of a prompt, read with as many others as fit at once."""
        together = max(PREFILL_TOKENS / self.prompt, 1.0)
        return float(generation.prefill_s(self.one, np.array(together), np.array(self.prompt))) / (
            together * self.prompt
        )

    def seconds(self, segments: Segments) -> float:
        read = float((segments.prompts * segments.prompt_len).sum()) * self._token_s
        return read + float((segments.steps * self.step_s(segments.batch, segments.kv_len)).sum())

    def step_s(self, batch: Floats, kv_len: Floats) -> Floats:
        """(n,) seconds of decode steps, interpolated in both directions."""
        sizes, lengths, seconds = self._grid
        i = np.clip(np.searchsorted(sizes, batch, side="right") - 1, 0, max(len(sizes) - 2, 0))
        j = np.clip(np.searchsorted(lengths, kv_len, side="right") - 1, 0, len(lengths) - 2)
        v = (kv_len - lengths[j]) / (lengths[j + 1] - lengths[j])
        low = seconds[i, j] * (1 - v) + seconds[i, j + 1] * v
        if len(sizes) == 1:
            return np.asarray(low)
        u = (batch - sizes[i]) / (sizes[i + 1] - sizes[i])
        high = seconds[i + 1, j] * (1 - v) + seconds[i + 1, j + 1] * v
        return np.asarray(low * (1 - u) + high * u)


def _extremes(replicas: list[tuple[Ints, Ints]]) -> Iterator[tuple[Ints, Ints]]:
    """One replica where all are alike, otherwise the fullest and the one with the longest response."""
    fullest = max(replicas, key=lambda r: int(r[0].sum() + r[1].sum()))
    yield fullest
    longest = max(replicas, key=lambda r: int(r[1].max(initial=0)))
    if longest is not fullest and int(longest[1].max(initial=0)) > int(fullest[1].max(initial=0)):
        yield longest
