"""What each process of `real.pace.probe` does. Started as `python -m real.pace_worker FOLDER`: FOLDER takes pace.json."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from real.calibrate_eager import BATCHES, LARGE, PROMPTS, step_seconds
from real.calibrate_passes import WARM_UP, model_passes
from real.pace import Pace
from real.process import joined

PASSES_S = 2.0
"""Of each of the models and microbatches."""
STEPS = 8
"""Answers of each model in turn, after a pass of training each."""


@record
def main() -> None:
    """Passes forward and backward, then decode steps, while the others do the same."""
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    with joined(cuda=False):
        passes_s = [took.both_s for took in model_passes(PASSES_S, WARM_UP)]
        wanted = [(shape, BATCHES[-1], PROMPTS[0]) for shape in LARGE]
        steps = [seconds for _, seconds in step_seconds(wanted, STEPS)]
        if dist.get_rank() == 0:
            write_atomically(folder / "pace.json", json.dumps(asdict(Pace.of(passes_s, steps))))


if __name__ == "__main__":
    main()
