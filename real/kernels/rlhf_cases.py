"""The kernels of RLHF for `compile_ahead`, at sizes that together choose every tile."""

from collections.abc import Callable, Iterator

import torch

from real.kernels.gae import gae_launch
from real.kernels.grouped_advantage import grouped_advantage_launch
from real.kernels.launching import Launch
from real.kernels.linear_logprob_kernels import logit_gradient_launch, parts_of, statistics_launch

Case = Callable[[tuple[int, int]], Launch]

LOGPROBS = ((8192, 4096, 128256), (4096, 576, 49152), (100, 576, 49152), (17, 129, 1000))
"""Tokens, width, vocabulary: Llama 3 8B, SmolLM2 135M, one short batch of it, and sizes that are no multiples of anything."""


def rlhf_cases() -> Iterator[tuple[str, Case]]:
    """Names and launches."""
    for dtype in (torch.float16, torch.bfloat16):
        for n, width, vocabulary in LOGPROBS if dtype == torch.bfloat16 else LOGPROBS[1:2]:
            yield from _logprob_cases(n, width, vocabulary, dtype)
    for steps in (1024, 37, 5000):
        yield f"gae 512x{steps}", lambda _, steps=steps: _gae(512, steps)
    for size, scaled in ((8, True), (8, False), (1, True), (5, True), (4096, True)):
        name = f"grouped_advantage 1024x{size}{'' if scaled else ' unscaled'}"
        yield name, lambda _, size=size, scaled=scaled: _grouped(1024, size, scaled)


def _logprob_cases(n: int, width: int, vocabulary: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    name = f"{n}x{width} to {vocabulary} {str(dtype).removeprefix('torch.')}"
    hidden, weight = _meta(n, width, dtype=dtype), _meta(vocabulary, width, dtype=dtype)
    targets, row = _meta(n, dtype=torch.int64), _meta(n)

    def forward(capability: tuple[int, int]) -> Launch:
        out = _meta(parts_of(n, vocabulary, hidden, capability), 4, n)
        return statistics_launch(hidden, weight, targets, out, capability)

    def backward(capability: tuple[int, int]) -> Launch:
        slice_of = _meta(min(vocabulary, 2048), width, dtype=dtype)
        out = _meta(n, len(slice_of), dtype=dtype)
        return logit_gradient_launch(hidden, slice_of, targets, (row,) * 4, out, 0, capability)

    yield f"linear_logprob {name} forward", forward
    yield f"linear_logprob {name} backward", backward


def _gae(sequences: int, steps: int) -> Launch:
    numbers, mask = _meta(sequences, steps), _meta(sequences, steps, dtype=torch.int8)
    return gae_launch(numbers, numbers, mask, numbers, numbers, _meta(2))


def _grouped(prompts: int, size: int, scaled: bool) -> Launch:
    rewards = _meta(prompts, size)
    return grouped_advantage_launch(rewards, rewards, _meta(1), scaled=scaled)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
