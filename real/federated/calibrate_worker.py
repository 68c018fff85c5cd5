"""One of more processes than there are cores: `python -m real.federated.calibrate_worker FOLDER`, started by `calibrating.py`."""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from real.federated.datasets import Images
from real.federated.local import Training, train
from real.federated.model import MixtureOfExperts
from real.launch import tell
from real.process import joined
from simcore.federated.moe_model import MoEShape

SHAPE = MoEShape(image=(1, 28, 28), channels=(8, 16, 16), width=64, experts=8, hidden=1024, top_k=2, classes=10)
BATCH, STEPS = 32, 7
PAUSE_S = 0.3
"""Clients wait for links between two trainings, so that caches and clocks are not those of a long job."""

WARM_UP, ROUNDS, QUICK_ROUNDS = 2, 20, 3


@record  # type: ignore[untyped-decorator]
def main() -> None:
    """Train all at once, after pauses, and write down how long the last of them took in each round."""
    folder, rounds = Path(sys.argv[1]), QUICK_ROUNDS if "quick" in sys.argv[2:] else ROUNDS
    with joined(cuda=False):
        torch.manual_seed(dist.get_rank())
        model = MixtureOfExperts(SHAPE)
        count = BATCH * STEPS
        data = Images(torch.rand(count, *SHAPE.image), torch.randint(SHAPE.classes, (count,)))
        seconds = []
        for i in range(WARM_UP + rounds):
            time.sleep(PAUSE_S)
            dist.barrier()
            start = time.perf_counter()
            train(model, data, Training(epochs=1, batch=BATCH), torch.Generator().manual_seed(i))
            seconds.append(time.perf_counter() - start)
            if dist.get_rank() == 0:
                tell(folder, i / (WARM_UP + rounds), "clients that share cores")
        write_atomically(folder / f"rank{dist.get_rank()}.json", json.dumps(seconds[WARM_UP:]))


if __name__ == "__main__":
    main()
