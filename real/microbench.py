"""Each kernel of the cost model as torch runs it: a function to time, for the sizes that a point has."""

import time
from collections import deque
from collections.abc import Callable
from statistics import fmean, median

import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

Run = Callable[[], object]
Apply = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
Make = Callable[[], tuple[torch.Tensor, ...]]
Point = tuple[int, ...]
SPREAD_B = 48 * 2**20
"""Operands are taken in turn from this much memory, so that none is in cache because it was just used."""
ADAMW_TENSORS = 32
"""About as many as three layers have."""


def timed(run: Run, at_least_s: float) -> tuple[float, float]:
    """Mean seconds of one call without the slowest twentieth, and the half-width of the middle half as a fraction.

    The mean, because an iteration is a sum of kernels. What a call returns is kept while `SPREAD_B` of others are made, as
    training keeps what backward needs: results go to memory that is not in cache.
    """
    kept = Kept()
    kept.add(run())
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - begun < at_least_s:
        start = time.perf_counter()
        made = run()
        seconds.append(time.perf_counter() - start)
        kept.add(made)
    return mean_and_spread(seconds)


def mean_and_spread(seconds: list[float]) -> tuple[float, float]:
    """As `timed` returns them, of the seconds of several calls."""
    seconds = sorted(seconds)
    usual = seconds[: max(len(seconds) - max(len(seconds) // 20, 1), 1)]
    spread = (seconds[3 * len(seconds) // 4] - seconds[len(seconds) // 4]) / 2
    return fmean(usual), spread / median(seconds)


class Kept:
    """The latest results, as many as fill `SPREAD_B`."""

    def __init__(self) -> None:
        self.results: deque[tuple[torch.Tensor, ...]] = deque()
        self.nbytes = 0

    def add(self, made: object) -> None:
        """Keep `made` if it is a tensor or several; the oldest go when there are too many."""
        tensors = tuple(t for t in (made if isinstance(made, tuple) else (made,)) if isinstance(t, torch.Tensor))
        self.results.append(tensors)
        self.nbytes += _size_B(tensors)
        while self.nbytes > SPREAD_B and len(self.results) > 1:
            self.nbytes -= _size_B(self.results.popleft())


def _size_B(tensors: tuple[torch.Tensor, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class InTurn:
    """What `make` makes and copies of it, handed out one after the other. Copies are made ten times as fast as random numbers."""

    def __init__(self, make: Make) -> None:
        first = make()
        count = min(max(SPREAD_B // _size_B(first), 1), 64)
        self.copies = [first, *(_copied(first) for _ in range(count - 1))]
        self.at = 0

    def next(self) -> tuple[torch.Tensor, ...]:
        self.at = (self.at + 1) % len(self.copies)
        return self.copies[self.at]


def _copied(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)


def forward(apply: Apply, make: Make) -> Run:
    """Forward as in training: what backward needs is kept until the next call."""
    operands = InTurn(make)
    return lambda: apply(*operands.next())


def backward_seconds(apply: Apply, make: Make, at_least_s: float) -> tuple[float, float]:
    """As `timed`, of the backward pass alone."""
    operands, kept = InTurn(make), Kept()
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - begun < 2 * at_least_s:
        tensors = operands.next()
        made = apply(*tensors)
        outs = made if isinstance(made, tuple) else (made,)
        grads = [torch.ones_like(out) for out in outs]
        start = time.perf_counter()
        torch.autograd.backward(outs, grads)
        seconds.append(time.perf_counter() - start)
        kept.add(tuple(t.grad for t in tensors if t.grad is not None))
        for t in tensors:
            t.grad = None
    return mean_and_spread(seconds)


def _leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).requires_grad_()


def gemms(rows: int, wide: int, deep: int) -> dict[Point, Run]:
    """The three products of a linear layer from `deep` to `wide` features: forward, for its input, for its weight."""
    with torch.no_grad():
        x, w, g = (InTurn(lambda a=a, b=b: (torch.randn(a, b),)) for a, b in ((rows, deep), (wide, deep), (rows, wide)))
    return {
        (rows, wide, deep): lambda: functional.linear(x.next()[0], w.next()[0]),
        (rows, deep, wide): lambda: g.next()[0] @ w.next()[0],
        (wide, deep, rows): lambda: g.next()[0].t() @ x.next()[0],
    }


def rmsnorm(rows: int, cols: int) -> tuple[Apply, Make]:
    norm = LlamaRMSNorm(cols)
    return norm, lambda: (_leaf(1, rows, cols),)


def silu_mul(rows: int, cols: int) -> tuple[Apply, Make]:
    return lambda a, b: functional.silu(a) * b, lambda: (_leaf(1, rows, cols), _leaf(1, rows, cols))


def add(rows: int, cols: int) -> tuple[Apply, Make]:
    return torch.add, lambda: (_leaf(1, rows, cols), _leaf(1, rows, cols))


def rope(rows: int, cols: int) -> tuple[Apply, Make]:
    """Queries and keys of 64-wide heads, half of `cols` each, sequences of 128."""
    heads, length = max(cols // 128, 1), min(128, rows)
    embedding = LlamaRotaryEmbedding(LlamaConfig(hidden_size=64 * heads, num_attention_heads=heads, head_dim=64))
    cos, sin = embedding(torch.zeros(1, length, 64), torch.arange(length)[None])

    def apply(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(apply_rotary_pos_emb(q, k, cos, sin))

    shape = (max(rows // length, 1), heads, length, 64)
    return apply, lambda: (_leaf(*shape), _leaf(*shape))


def attention(
    batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, causal: int
) -> tuple[Apply, Make]:
    def apply(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=bool(causal), enable_gqa=heads != kv_heads)

    return apply, lambda: (
        _leaf(batch, heads, q_len, head_dim),
        _leaf(batch, kv_heads, kv_len, head_dim),
        _leaf(batch, kv_heads, kv_len, head_dim),
    )


def embedding(rows: int, cols: int, vocab: int) -> tuple[Apply, Make]:
    tokens = torch.randint(0, vocab, (1, rows))
    return lambda table: functional.embedding(tokens, table), lambda: (_leaf(vocab, cols),)


def cross_entropy(rows: int, vocab: int) -> tuple[Apply, Make]:
    tokens = torch.randint(0, vocab, (rows,))
    return lambda logits: functional.cross_entropy(logits, tokens), lambda: (_leaf(rows, vocab),)


def adamw(params: int) -> Run:
    """A step, after which tensors lose their gradients."""
    weights = [nn.Parameter(torch.randn(params // ADAMW_TENSORS)) for _ in range(ADAMW_TENSORS)]
    gradients = [torch.randn_like(w) for w in weights]
    optimizer = torch.optim.AdamW(weights, fused=True)

    def run() -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def copy(elements: int) -> Run:
    operands = InTurn(lambda: (torch.randn(elements), torch.empty(elements)))

    def run() -> None:
        a, b = operands.next()
        b.copy_(a)

    return run


DIFFERENTIABLE = {
    "rmsnorm": rmsnorm,
    "silu_mul": silu_mul,
    "add": add,
    "rope": rope,
    "attention": attention,
    "embedding": embedding,
    "cross_entropy": cross_entropy,
}
"""Kernels with a backward."""

NO_BACKWARD = ("add",)  # its backward hands the gradient on
