"""Federated rounds for real: a process for each client and one for the server, behind links shaped as the cluster's.

Everybody asks everybody over gRPC with mutual TLS, as in a deployment with Flower, whose messages wait in queues that no
plan knows of.
"""

import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from real.federated.certificates import issue
from real.federated.plan_facts import KEYS, NETWORK, PLAN, RESULT, Facts, rank_name
from real.federated.plan_roles import IMAGES
from real.federated.ports import free_ports
from real.federated.shaping import Route
from real.here import MOST_CPU_RANKS
from real.launch import launch
from real.traces import trace_of
from simcore.cluster import Cluster
from simcore.errors import CannotRun, Problem
from simcore.plan import Plan, Transfer
from simcore.progress import Progress
from simcore.trace import Trace


def lacking(plan: Plan) -> list[Problem]:
    """What keeps the plan from running here."""
    settings, model = plan.decisions["settings"], plan.workload["model"]
    image = tuple(model["image"])
    rules = [
        ("n_ranks", plan.n_ranks, plan.n_ranks <= MOST_CPU_RANKS, f"at most {MOST_CPU_RANKS}, the server included"),
        ("planner.relays", settings["relays"], not settings["relays"], "false: relays are only simulated"),
        (
            "workload.optimizer",
            plan.workload["optimizer"],
            plan.workload["optimizer"] == "sgd_momentum",
            "sgd_momentum",
        ),
        ("workload.dense", plan.workload["dense"], plan.workload["dense"], "true: every expert computes every sample"),
        ("workload.model.image", image, image in IMAGES, " or ".join(map(str, IMAGES))),
        ("workload.model.classes", model["classes"], model["classes"] == 10, "10: images are of digits"),
    ]
    return [Problem(field, repr(given), allowed) for field, given, holds, allowed in rules if not holds]


def run(plan: Plan, cluster: Cluster, *, progress: Progress | None = None) -> Trace:
    """The measured trace. Raises `CannotRun` with what a process said before it failed."""
    with tempfile.TemporaryDirectory(prefix="windtunnel-") as name:
        folder = Path(name)
        plan.save(folder / PLAN)
        issue(folder / KEYS, [rank_name(r) for r in range(plan.n_ranks)])
        with _network(plan, cluster, folder):
            launch("real.federated.plan_worker", plan.n_ranks, folder, progress=progress)
        results = [json.loads((folder / RESULT.format(rank=r)).read_text()) for r in range(plan.n_ranks)]
    if progress:
        progress(1.0, "done")
    return trace_of(plan, cluster, _both_ends(plan, results))


@contextmanager
def _network(plan: Plan, cluster: Cluster, folder: Path) -> Iterator[None]:
    """The relays, as long as the block; what ranks have to know of them is in the folder."""
    n = plan.n_ranks
    pairs = [(a, b) for a in range(n) for b in range(n) if a != b]
    ports = free_ports(n + len(pairs))
    own, between = ports[:n], dict(zip(pairs, ports[n:], strict=True))
    facts = Facts(
        capacity_B_per_s=[float(c) for c in cluster.fabric.capacity_B_per_s],
        routes=[_route(cluster, a, b, between[a, b], own[b]) for a, b in pairs],
        listens=own,
        reach=[[between.get((a, b), 0) for b in range(n)] for a in range(n)],
        secret=secrets.token_hex(16),
    )
    facts.save(folder / NETWORK)
    command = [sys.executable, "-m", "real.federated.network_process", str(folder / NETWORK)]
    with (folder / "network.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            said = (folder / "network.log").read_text(errors="replace").splitlines()
            raise CannotRun("the network did not start", [Problem("network", " ".join(said[-3:]), "free ports")])
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _route(cluster: Cluster, a: int, b: int, port: int, target: int) -> Route:
    """From rank a to rank b, which listens at `target`."""
    there, back = (cluster.fabric.routes(np.array([x]), np.array([y]))[0] for x, y in ((a, b), (b, a)))
    links = [tuple(int(i) for i in way if i >= 0) for way in (there, back)]
    late = [float(sum(cluster.fabric.latency_s[i] for i in way)) for way in links]
    return Route(
        port=port, target=("127.0.0.1", target), there=links[0], back=links[1], there_s=late[0], back_s=late[1]
    )


def _both_ends(plan: Plan, results: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """Results with every transfer on both of its ranks, from when it could begin.

    The one who gets it measures it, and may have asked before the other had it to give.
    """
    offered = {(rank, int(stage)): at for rank, r in enumerate(results) for stage, at in r["offered"].items()}
    of = {t.id: t.op for t in plan.tasks}
    rank_of = {name: int(group.ranks().reshape(-1)[0]) for name, group in plan.groups.items()}
    pieces: list[list[list[object]]] = [[] for _ in results]
    for rank, result in enumerate(results):
        for task, iteration, start, end, size, stage in result["pieces"]:
            op = of[task]
            if not isinstance(op, Transfer):
                pieces[rank].append([task, iteration, start, end, size])
                continue
            source = rank_of[op.source]
            begun = max(start, offered[source, stage])
            for end_rank in (source, rank):
                pieces[end_rank].append([task, iteration, begun, end, size])
    return [{**r, "pieces": p} for r, p in zip(results, pieces, strict=True)]
