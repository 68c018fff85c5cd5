"""Strategies side by side on real data: `python -m real.federated.accuracy` trains every client for real and prints a table.

20 clients share MNIST's 5,000 digits in parts that a Dirichlet distribution makes unequal. Accuracy is personal: each client's own
model on its own tests, averaged over clients. `aggregated` is with what a round made, `trained` after training in the next round,
when even a model that all share has become personal. Bytes are of all rounds and clients.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from costmodels.files import write_atomically
from real.federated.datasets import mnist
from real.federated.federation import LocalFederation
from real.federated.local import Training
from real.federated.partition import dirichlet, split
from simcore.federated.moe_model import MoEShape
from simcore.federated.rounds import Strategy

CLIENTS = 20
ALPHAS = (0.1, 0.5)
LAST = 3
"""Accuracies are means over the last rounds."""

FIRST_SEED = 10
"""Lower seeds served to find settings, and are not measured."""

SHAPE = MoEShape(image=(1, 28, 28), channels=(8, 16, 16), width=64, experts=8, hidden=128, top_k=2, classes=10)

STRATEGIES = {
    "FedMoE-DA": Strategy(system="fedmoe_da", P=5, tau=1.0, every=1),
    "FedAvg-MoE": Strategy(system="fedavg"),
    "FedProx-MoE": Strategy(system="fedprox", proximal=0.01),
    "per-index averaging": Strategy(system="expert_averaging"),
    "local only": Strategy(system="local_only"),
    "gossip": Strategy(system="gossip"),
    "SAPS-like": Strategy(system="saps", share=0.1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: accuracies in per cent."""

    strategy: str
    alpha: float
    seed: int
    aggregated: float
    trained: float
    server_B: int
    peer_B: int
    seconds: float


def measure(job: tuple[str, float, int, int]) -> Run:
    """Strategy, alpha, seed, rounds."""
    name, alpha, seed, rounds = job
    torch.set_num_threads(1)
    begun, rng, images = time.perf_counter(), np.random.default_rng(seed), mnist()
    parts = dirichlet(images.classes.numpy(), CLIENTS, alpha, rng)
    federation = LocalFederation(SHAPE, split(images, parts, rng), STRATEGIES[name], Training(), seed)
    found = [federation.round() for _ in range(rounds)]
    return Run(
        strategy=name,
        alpha=alpha,
        seed=seed,
        aggregated=100 * float(np.mean([m.aggregated for m in found[-LAST:]])),
        trained=100 * float(np.mean([m.trained for m in found[-LAST:]])),
        server_B=sum(m.server_B for m in found),
        peer_B=sum(m.peer_B for m in found),
        seconds=time.perf_counter() - begun,
    )


def table(runs: Sequence[Run]) -> Iterator[str]:
    """Mean and standard error over seeds; differences are of pairs with one seed, so that what a seed brings along cancels."""
    for alpha in dict.fromkeys(r.alpha for r in runs):
        mine = [r for r in runs if r.alpha == alpha]
        whole = sum(r.server_B for r in mine if r.strategy == "FedAvg-MoE")
        yield f"Dirichlet {alpha}, {len({r.seed for r in mine})} seeds, {CLIENTS} clients"
        yield f"  {'strategy':<20} {'aggregated %':>14} {'FedMoE-DA more by':>18} {'trained %':>14} {'server':>9} {'peers MB':>9}"
        for name in [n for n in STRATEGIES if any(r.strategy == n for r in mine)]:
            own = {r.seed: r for r in mine if r.strategy == name}
            ours = {r.seed: r for r in mine if r.strategy == "FedMoE-DA"}
            more = [ours[s].aggregated - own[s].aggregated for s in own if s in ours]
            said = _shown(more) if name != "FedMoE-DA" and more else ""
            server = f"{sum(r.server_B for r in own.values()) / whole:8.1%}" if whole else ""
            peers = np.mean([r.peer_B for r in own.values()]) / 1e6
            yield (
                f"  {name:<20} {_shown([r.aggregated for r in own.values()]):>14} {said:>18} "
                f"{_shown([r.trained for r in own.values()]):>14} {server:>9} {peers:9.1f}"
            )


def _shown(values: Sequence[float]) -> str:
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.2f} ±{error:.2f}"


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Train a mixture of experts on 20 clients with every strategy.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first seed")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/federated_accuracy.json"))
    given = parser.parse_args(arguments)
    seeds = range(given.first, given.first + given.seeds)
    jobs = [(name, alpha, seed, given.rounds) for seed in seeds for alpha in ALPHAS for name in given.strategies]
    begun = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        runs = pool.map(measure, jobs, chunksize=1)
    document = {"rounds": given.rounds, "torch": torch.__version__, "runs": [asdict(r) for r in runs]}
    write_atomically(given.out, json.dumps(document, indent=1) + "\n")
    lines = [*table(runs), f"{given.rounds} rounds, {time.perf_counter() - begun:.0f} s, written to {given.out}"]
    print("\n".join(lines))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
