"""One rank of a federated plan: `python -m real.federated.plan_worker FOLDER`, started by `real.workloads.federated_moe`."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from costmodels.files import write_atomically
from real.federated.certificates import load
from real.federated.peers import Fetcher, PeerService
from real.federated.plan_facts import KEYS, NETWORK, PLAN, RESULT, Facts, rank_name
from real.federated.plan_roles import Client, Post, Server
from real.launch import tell
from real.load import Clock
from real.process import joined
from simcore.plan import Plan

WARM_UP = 1  # opens the connections that later rounds find open


@record  # type: ignore[untyped-decorator]
def main() -> None:
    """Run the plan of the folder."""
    folder = Path(sys.argv[1])
    with joined(cuda=False):
        rank = dist.get_rank()
        plan, facts = Plan.load(folder / PLAN), Facts.load(folder / NETWORK)
        identity = load(folder / KEYS, rank_name(rank))
        with PeerService(identity, port=facts.listens[rank]) as service, Fetcher(identity) as fetcher:
            post = Post(rank=rank, facts=facts, service=service, fetcher=fetcher)
            result = _rounds(plan, post, folder)
            dist.barrier()  # nobody hangs up while others still ask
        write_atomically(folder / RESULT.format(rank=rank), json.dumps(result))


def _rounds(plan: Plan, post: Post, folder: Path) -> dict[str, Any]:
    """Pieces, losses, and bounds of the rounds in seconds of this machine's clock; offers by stage of this rank."""
    chosen = f"train/{post.rank}" in plan.index
    last = post.rank == plan.n_ranks - 1
    role = Server(plan, post) if last else Client(plan, post, post.rank) if chosen else None
    iterations = int(plan.workload["iterations"])
    losses: list[float] = []
    bounds: list[tuple[float, float]] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = Clock.now()
    for i in range(WARM_UP + iterations):
        post.iteration = i - WARM_UP
        if post.rank == 0:
            tell(folder, i / (WARM_UP + iterations), f"round {post.iteration} of {iterations}" if i else "warming up")
        if i == WARM_UP:
            begun = Clock.now()
        dist.barrier()
        start = time.perf_counter()
        losses.append(role.round(i) if role is not None else 0.0)
        dist.barrier()
        bounds.append((start, time.perf_counter()))
    return {
        "pieces": post.pieces,
        "offered": post.offered,
        "losses": losses,
        "bounds": bounds[WARM_UP:],
        "peak_B": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
        "spent": Clock.now().since(begun),
    }


if __name__ == "__main__":
    main()
