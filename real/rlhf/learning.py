"""Does reward rise? A small model is trained through Ray on two ranks, for longer than a test may.

    python -m real.rlhf.learning --out notebooks/data/rlhf_learning.json
    python -m real.rlhf.learning --model smollm2-135m --algorithms grpo --seeds 1 --iterations 10

The tiny Llama learns to say even tokens. Its actor trains with tensor parallelism over both ranks and generates on each by itself,
so that weights go through the 3D-HybridEngine in every iteration. SmolLM2-135M learns sums; it has three heads of keys and values,
which two ranks cannot share, so each has the actor whole and half of the batch.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from costmodels.files import write_atomically
from real.here import path_taken, versions
from real.rlhf.job import ALGORITHMS, TINY, Algorithm, Job
from real.rlhf.placement import together
from real.rlhf.pretrained import smollm2
from real.rlhf.run import iterate, place, processes
from real.rlhf.sums import QUESTION_LEN
from simcore.errors import WindtunnelError
from simcore.hybridflow.grouping import Degrees

ANSWERS = 4
ENDS = 5
"""Iterations at either end whose mean is told, or a third of them if that is less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """How a model is trained; `sequences` are of an iteration, whatever the algorithm."""

    model: Callable[[], Mapping[str, Any]]
    degrees: Degrees
    sequences: int
    prompt_len: int
    response_len: int
    learning_rate: float

    def job(self, algorithm: Algorithm, seed: int) -> Job:
        """Raises `InputError` if weights are not here. GRPO has fewer prompts, because it answers each several times."""
        answers = ANSWERS if algorithm == "grpo" else 1
        return Job(
            algorithm=algorithm,
            model=self.model(),
            prompts=self.sequences // answers,
            answers=answers,
            prompt_len=self.prompt_len,
            response_len=self.response_len,
            learning_rate=self.learning_rate,
            critic_learning_rate=self.learning_rate,
            seed=seed,
        )


STUDIES: Mapping[str, Study] = {
    "tiny": Study(
        model=lambda: TINY,
        degrees=Degrees(tp=2, gen_tp=1),
        sequences=64,
        prompt_len=4,
        response_len=6,
        learning_rate=5e-3,
    ),
    "smollm2-135m": Study(
        model=smollm2,
        degrees=Degrees(dp=2),
        sequences=32,
        prompt_len=QUESTION_LEN,
        response_len=4,
        learning_rate=1e-4,
    ),
}


def learn(
    study: Study, algorithms: Sequence[Algorithm], seeds: Sequence[int], iterations: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """A row for each algorithm and seed: its sizes and the means of every iteration. Raises `CannotRun` if a process fails."""
    jobs = [study.job(algorithm, seed) for seed in seeds for algorithm in algorithms]
    with processes([study.degrees.n_ranks], folder) as pools:
        for job in jobs:
            begun = time.perf_counter()
            flow = place(job, together(job, study.degrees), pools)
            history = iterate(flow, iterations, folder, each=partial(_progress, job, iterations))
            told = ("algorithm", "seed", "prompts", "answers", "learning_rate", "kl", "cost_limit")
            seconds = time.perf_counter() - begun
            yield {**{name: getattr(job, name) for name in told}, "seconds": seconds, "history": history}


def _progress(job: Job, iterations: int, i: int, means: Mapping[str, float]) -> None:
    """A line that the next one replaces."""
    end = "\n" if i + 1 == iterations else ""
    told = f"{job.algorithm}, seed {job.seed}: {i + 1} of {iterations} iterations, reward {means['reward']:.2f}"
    print(f"\r{told}", end=end, file=sys.stderr, flush=True)  # noqa: T201


def sentence(row: Mapping[str, Any]) -> str:
    """Reward at the beginning and at the end, and cost if there is one."""
    history = row["history"]
    ends = max(1, min(ENDS, len(history) // 3))
    means = [
        f"{name} {fmean(h[name] for h in history[:ends]):.2f} to {fmean(h[name] for h in history[-ends:]):.2f}"
        for name in ("reward", "cost")
        if name in history[0]
    ]
    heading = f"{row['algorithm']}, seed {row['seed']}"
    return f"{heading}: {', '.join(means)} in {len(history)} iterations, {row['seconds']:.0f} s"


def document(model: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """JSON of all runs so far."""
    made = {"model": model, "ranks": STUDIES[model].degrees.n_ranks, "path": path_taken(), **versions(), "runs": rows}
    return json.dumps(made, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; what is done is in the file after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=STUDIES, default="tiny")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/rlhf_learning.json"))
    given = parser.parse_args(arguments)
    study: Study = STUDIES[given.model]
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for row in learn(study, given.algorithms, range(given.seeds), given.iterations, Path(folder)):
                rows.append(row)
                print(sentence(row), flush=True)  # noqa: T201
                write_atomically(given.out, document(given.model, rows))
    except WindtunnelError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    print(f"{sum(row['seconds'] for row in rows):.0f} s, written to {given.out}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
