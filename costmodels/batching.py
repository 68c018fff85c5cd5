"""Continuous batching: how many sequences a generation engine has in each step, given their lengths and its KV cache.

Sequences are admitted in order while there is a free slot and their prompts (with what they generated before) fit into the cache.
When the cache is full, the one admitted last is put back to the front of the queue and computed again later, as vLLM does (Kwon
et al. 2023, section 4.5). All of this is counted in steps and tokens, so that it does not depend on how long a step takes.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.errors import DataError, Problem

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """Runs of decode steps with the same sequences: arrays (segments,) of steps, sequences, and their mean length in tokens.

    Before a segment `prompts` sequences of `prompt_len` tokens on average are read.
    """

    steps: Floats
    batch: Floats
    kv_len: Floats
    prompts: Floats
    prompt_len: Floats

    @property
    def total_steps(self) -> float:
        return float(self.steps.sum())


def segments_of(prompt_len: Sequence[int], response_len: Sequence[int], *, slots: int, cache_tokens: float) -> Segments:
    """How sequences of those lengths go through an engine of `slots` places and room for `cache_tokens` tokens.

    Raises `DataError` if the longest sequence does not fit into the cache by itself.
    """
    longest = max(p + r for p, r in zip(prompt_len, response_len, strict=True))
    if longest > cache_tokens or slots < 1:
        given = f"{cache_tokens:.0f} tokens, {slots} slots"
        raise DataError("a KV cache that is too small", [Problem("cache", given, f"{longest} tokens, at least 1 slot")])
    engine = _Engine(list(prompt_len), list(response_len), slots, cache_tokens)
    rows = []
    while engine.waiting or engine.active:
        rows.append(engine.advance())
    columns = np.array(rows, dtype=np.float64).T
    return Segments(steps=columns[0], batch=columns[1], kv_len=columns[2], prompts=columns[3], prompt_len=columns[4])


def padded_segments(prompt_len: NDArray[np.int64], response_len: NDArray[np.int64], slots: int) -> Segments:
    """Sequences in the order given, `slots` at a time, padded: a step has all of them until the longest has ended.

    Reading the prompts makes the first token of each response.
    """
    rows = []
    for first in range(0, len(prompt_len), slots):
        prompts, longest = prompt_len[first : first + slots], int(response_len[first : first + slots].max())
        read = float(prompts.max())
        rows.append((max(longest - 1, 1), len(prompts), read + longest / 2, len(prompts), read))
    columns = np.array(rows, dtype=np.float64).T
    return Segments(steps=columns[0], batch=columns[1], kv_len=columns[2], prompts=columns[3], prompt_len=columns[4])


class _Engine:
    """State between segments. `tokens` is what all active sequences hold; `done` the steps so far; `active` maps a sequence to the
    step at which it was admitted, in order of admission."""

    def __init__(self, prompt_len: list[int], response_len: list[int], slots: int, cache_tokens: float) -> None:
        self.length, self.left = prompt_len, response_len
        self.slots, self.room = slots, cache_tokens
        self.waiting = deque(range(len(prompt_len)))
        self.active: dict[int, int] = {}
        self.ends: list[tuple[int, int, int]] = []
        self.tokens, self.done = 0, 0

    def advance(self) -> tuple[float, float, float, float, float]:
        """One segment: admit, make room, and step until somebody ends or the cache is full."""
        admitted = self._admit()
        n = len(self.active)
        while n > 1 and self.tokens + n > self.room:
            self._put_back()
            n = len(self.active)
        first_end = self._first_end()
        steps = max(min(first_end - self.done, int((self.room - self.tokens) // n)), 1)
        middle = (self.tokens + n * (steps + 1) / 2) / n
        self.done += steps
        self.tokens += n * steps
        self._retire()
        read = sum(admitted)
        return float(steps), float(n), middle, float(len(admitted)), read / len(admitted) if admitted else 0.0

    def _admit(self) -> list[int]:
        """Lengths of those admitted; each leaves room for a step of everybody."""
        found = []
        while self.waiting and len(self.active) < self.slots:
            i = self.waiting[0]
            if self.active and self.tokens + self.length[i] + len(self.active) + 1 > self.room:
                break
            self.waiting.popleft()
            self.active[i] = self.done
            self.tokens += self.length[i]
            heapq.heappush(self.ends, (self.done + self.left[i], i, self.done))
            found.append(self.length[i])
        return found

    def _put_back(self) -> None:
        """The one admitted last keeps its tokens and gives up its cache."""
        i, since = self.active.popitem()
        self._leave(i, since)
        self.waiting.appendleft(i)

    def _leave(self, i: int, since: int) -> None:
        ran = self.done - since
        self.tokens -= self.length[i] + ran
        self.length[i] += ran
        self.left[i] -= ran

    def _first_end(self) -> int:
        while (i := self.ends[0][1]) not in self.active or self.active[i] != self.ends[0][2]:
            heapq.heappop(self.ends)
        return self.ends[0][0]

    def _retire(self) -> None:
        while self.ends and self.ends[0][0] <= self.done:
            _, i, since = heapq.heappop(self.ends)
            if self.active.get(i) == since:
                del self.active[i]
                self._leave(i, since)
