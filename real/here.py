"""What this machine offers to a run."""

import numpy as np
import torch
import transformers

MOST_CPU_RANKS = 8


def most_ranks() -> tuple[int, str]:
    """How many ranks a plan may have, and what that is."""
    gpus = torch.cuda.device_count()
    return (gpus, "GPUs of this machine") if gpus else (MOST_CPU_RANKS, "ranks on a machine without a GPU")


def path_taken() -> str:
    """Which devices and which communication run here."""
    if torch.cuda.is_available():
        return f"CUDA ({torch.cuda.get_device_name(0)}) with NCCL"
    return "CPU, one torch thread a rank, with gloo"


def versions() -> dict[str, str]:
    """Of the libraries that decide how fast a run is."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
