"""Text to train on: the reference topics that Python ships with itself, byte by byte."""

from pydoc_data.topics import topics

import numpy as np
import torch


def text() -> np.ndarray:
    """About 700 KB of English as bytes, topics in order of their names."""
    return np.frombuffer("\n\n".join(topics[name] for name in sorted(topics)).encode(), dtype=np.uint8)


class Batches:
    """Sequences drawn from the text. The same seed gives the same global batch on every rank; a rank takes its own share."""

    def __init__(self, *, seed: int, seq_len: int, vocab: int) -> None:
        if vocab < 256:
            raise ValueError(f"byte tokens need a vocabulary of 256, not {vocab}")
        self.bytes, self.seq_len = text(), seq_len
        self.rng = np.random.default_rng(seed)

    def next(self, sequences: int) -> torch.Tensor:
        """(sequences, seq_len + 1) int64 tokens: inputs and, one further, targets."""
        starts = self.rng.integers(0, len(self.bytes) - self.seq_len - 1, size=sequences)
        rows = np.stack([self.bytes[s : s + self.seq_len + 1] for s in starts])
        return torch.from_numpy(rows.astype(np.int64))
