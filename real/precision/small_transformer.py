"""Transformer encoders small enough to train on a CPU, with their attention written out: products and softmax are operators."""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Every position looks at all others; `heads` share the width."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        mixed = self.dropout(self.softmax(scores)) @ v
        return self.out(mixed.transpose(1, 2).reshape(x.shape))

    def _split(self, x: Tensor) -> Tensor:
        """(samples, tokens, width) to (samples, heads, tokens, width of a head)."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


class Layer(nn.Module):
    """Norms before attention and feed-forward, sums after."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.dropout(self.down(self.gelu(self.up(self.norm2(x)))))


class SmallTransformer(nn.Module):
    """Classifies sequences of `tokens` symbols by the mean over their positions."""

    def __init__(
        self,
        *,
        classes: int = 10,
        symbols: int = 256,
        tokens: int = 64,
        width: int = 64,
        heads: int = 4,
        layers: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.symbols = nn.Embedding(symbols, width)
        self.positions = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Class scores (samples, classes) of tokens (samples, tokens)."""
        x = self.symbols(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class PatchTransformer(nn.Module):
    """Classifies images by the mean over patches of pixels (Dosovitskiy et al. 2021, without a class token)."""

    def __init__(
        self,
        *,
        classes: int = 10,
        pixels: int = 49,
        patches: int = 16,
        width: int = 32,
        heads: int = 4,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.patches = nn.Linear(pixels, width)
        self.positions = nn.Parameter(0.5 * torch.randn(patches, width))
        self.layers = nn.ModuleList(Layer(width, heads, dropout=0.0) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Class scores (samples, classes) of images (samples, patches, pixels)."""
        x = self.patches(patches) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))
