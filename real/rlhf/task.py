"""A task whose answers a few lines can check: say even tokens, and few that four divides.

Rewards and costs are shares of the longest response, so a response that ends early has less of both.
"""

import torch
from torch import Tensor

END = 0
"""The token that ends a response."""

FIRST = 2
"""Smallest token of a prompt."""


def prompts(seed: int, iteration: int, count: int, length: int, vocab: int) -> Tensor:
    """(count, length) int64, the same for the same numbers."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + iteration * 1_009 + 1)
    return torch.randint(FIRST, vocab, (count, length), generator=generator)


def pretraining(seed: int, iteration: int, count: int, length: int, vocab: int) -> Tensor:
    """(count, length) int64 text of another kind that the model should not unlearn: tokens that count upwards."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + iteration * 1_009 + 2)
    start = torch.randint(FIRST, vocab, (count, 1), generator=generator)
    return FIRST + (start - FIRST + torch.arange(length)) % (vocab - FIRST)


def reward(tokens: Tensor, mask: Tensor, prompt_len: int) -> Tensor:
    """(n,) share of even tokens but END. `tokens` (n, prompt + response), `mask` (n, response)."""
    return _share(tokens[:, prompt_len:], mask, 2)


def cost(tokens: Tensor, mask: Tensor, prompt_len: int) -> Tensor:
    """(n,) share of tokens but END that four divides."""
    return _share(tokens[:, prompt_len:], mask, 4)


def _share(response: Tensor, mask: Tensor, divisor: int) -> Tensor:
    return ((response % divisor == 0) & (response != END) & mask).float().mean(1)
