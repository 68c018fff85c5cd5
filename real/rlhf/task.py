"""Tasks whose answers a few lines can check: prompts, text that should not be unlearnt, rewards and costs.

Tensors are as everywhere: `tokens` (n, prompt + response), `mask` (n, response), true for tokens of the response up to its end.
"""

from typing import Protocol

import torch
from torch import Tensor

from real.rlhf.job import Job

FIRST = 2
"""Smallest token of a prompt."""


class Task(Protocol):
    """What a job asks of its model; the same for the same job and iteration on every process."""

    def prompts(self, iteration: int) -> Tensor:
        """(prompts, prompt_len) int64."""
        ...

    def pretraining(self, iteration: int) -> Tensor:
        """(sequences, prompt_len + response_len) int64, text of another kind that the model should not unlearn."""
        ...

    def reward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(n,) from 0 to 1."""
        ...

    def cost(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(n,) from 0 to 1, what a response should have little of."""
        ...


def task_of(job: Job) -> Task:
    """Sums for a model that knows language, even tokens for one whose weights follow from a seed."""
    if job.pretrained:
        from real.rlhf.sums import Sums

        return Sums(job)
    return EvenTokens(job)


class EvenTokens:
    """Say even tokens, and few that four divides.

    Rewards and costs are shares of the longest response, so a response that ends early has less of both.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.vocab = job, int(job.model["vocab"])

    def prompts(self, iteration: int) -> Tensor:
        """Tokens at random."""
        shape = (self.job.prompts, self.job.prompt_len)
        return torch.randint(FIRST, self.vocab, shape, generator=generator(self.job, iteration, 1))

    def pretraining(self, iteration: int) -> Tensor:
        """Tokens that count upwards."""
        shape = (self.job.sequences, 1)
        start = torch.randint(FIRST, self.vocab, shape, generator=generator(self.job, iteration, 2))
        length = self.job.prompt_len + self.job.response_len
        return FIRST + (start - FIRST + torch.arange(length)) % (self.vocab - FIRST)

    def reward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Share of even tokens but the end."""
        return self._share(tokens, mask, 2)

    def cost(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Share of tokens but the end that four divides."""
        return self._share(tokens, mask, 4)

    def _share(self, tokens: Tensor, mask: Tensor, divisor: int) -> Tensor:
        response = tokens[:, self.job.prompt_len :]
        return ((response % divisor == 0) & (response != self.job.end) & mask).float().mean(1)


def generator(job: Job, iteration: int, purpose: int) -> torch.Generator:
    """Random numbers of an iteration, other ones for each purpose."""
    return torch.Generator().manual_seed(job.seed * 1_000_003 + iteration * 1_009 + purpose)
