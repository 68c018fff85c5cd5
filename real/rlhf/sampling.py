"""Answers to prompts, token by token with a KV cache.

Each sequence has random numbers of its own, made from the seed, the iteration and its number: it is answered the same wherever
and in whatever batch it is. The largest of logits plus Gumbel noise is a draw from their softmax.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM


def gumbel(seed: int, iteration: int, rows: Tensor, length: int, vocab: int) -> Tensor:
    """(len(rows), length, vocab) float32 noise of the sequences numbered `rows`."""
    drawn = []
    for row in rows.tolist():
        generator = torch.Generator().manual_seed(((seed * 1_000_003 + iteration) * 1_000_003 + row) % 2**63)
        uniform = torch.rand(length, vocab, generator=generator).clamp_min(torch.finfo(torch.float32).tiny)
        drawn.append(-(-uniform.log()).log())
    return torch.stack(drawn) if drawn else torch.empty(0, length, vocab)


@torch.no_grad()
def generate(
    model: LlamaForCausalLM,
    prompts: Tensor,
    length: int,
    noise: Tensor | None = None,
    *,
    end: int = 0,
    prompts_read: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Tokens (n, prompt + length), `end` from the end on, and the mask (n, length) of the response with its first `end`.

    `noise` as `gumbel` makes it; None takes the likeliest token. `prompts_read` is called when there is a first token.
    """
    cache = DynamicCache(config=model.config)
    tokens, step = prompts, prompts
    mask = torch.zeros(len(prompts), length, dtype=torch.bool, device=prompts.device)
    going = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    for t in range(length):
        logits = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        chosen = (logits if noise is None else logits + noise[:, t].to(logits.device)).argmax(-1)
        mask[:, t] = going
        step = torch.where(going, chosen, end)[:, None]
        tokens = torch.cat([tokens, step], dim=1)
        going = going & (step[:, 0] != end)
        if t == 0:
            prompts_read()
    return tokens, mask
