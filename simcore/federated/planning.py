"""A round of federated learning as a plan: what every client gets, computes, sends and fetches, as tasks that any backend runs.

A plan is the first round, with everybody who is chosen for it; a run repeats it. Who leaves, comes late or fails is the business of
`running.py`, which plays many rounds.
"""

import json
from typing import Any

import numpy as np

from simcore.cluster import Cluster
from simcore.draft import Draft
from simcore.engine.placement import Costs
from simcore.errors import PlanError, Problem
from simcore.federated.links import Links
from simcore.federated.moe_model import averaging_kernels, mixing_kernels, similarity_kernels, step_kernels
from simcore.federated.rounds import Round, Strategy
from simcore.federated.strategies import decide
from simcore.plan import Compute, Group, Plan, Transfer
from simcore.workloads.federated_moe import PAIRS, FederatedMoE

SERVER = "server"
LONGEST = 20_000
"""Clients and flows that a plan lists at most as tasks; `windtunnel rounds` plays more."""


def first_round(workload: object, cluster: Cluster, cost: Costs, strategy: Strategy) -> Plan:
    """The plan of round 0. Raises `PlanError` for another workload, a cluster without clients, and rounds too large for a plan."""
    if not isinstance(workload, FederatedMoE):
        problem = Problem("workload.name", type(workload).__name__, "federated_moe")
        raise PlanError(f"the planner {strategy.system} plans federated training", [problem])
    links = Links(cluster, cost)
    if links.clients < 1:
        problem = Problem("cluster", f"{cluster.n_ranks} ranks", "a client and a server at least")
        raise PlanError("a federation without clients", [problem])
    there = np.zeros(links.clients, dtype=bool)
    there[workload.chosen(links.clients, 0, 0.0)] = True
    decided = decide(
        strategy,
        workload.shape.parts,
        0,
        there,
        links.access(),
        workload.rng(PAIRS, 0),
        gates=workload.gates(links.clients, 0) if strategy.system == "fedmoe_da" else None,
    )
    size = int(there.sum()) + len(decided.flows.target)
    if size > LONGEST:
        advice = "Set `workload.clients_per_round`, or play the rounds with `windtunnel rounds`."
        problem = Problem(
            "workload", f"{size:,} clients and flows in a round", f"at most {LONGEST:,} in a plan", advice
        )
        raise PlanError("a round too large for a plan", [problem])
    return round_plan(workload, cluster, strategy, decided)


def round_plan(workload: FederatedMoE, cluster: Cluster, strategy: Strategy, decided: Round) -> Plan:
    """The tasks of one round."""
    draft, there = Draft(), np.flatnonzero(decided.there).tolist()
    before = _train_and_send(draft, workload, strategy, decided, there)
    if strategy.has_server:
        _aggregate(draft, workload, decided, before)
    _exchange(draft, workload, strategy, decided, there)
    size = workload.shape.elements * 4.0
    return Plan(
        name=f"{strategy.system} with {len(there)} clients",
        n_ranks=cluster.n_ranks,
        groups={
            **{_name(c): Group(axes=(("one", 1, 1),), offset=c) for c in there},
            **_server_group(cluster, strategy),
        },
        tasks=tuple(draft.tasks),
        decisions=decisions(strategy, decided),
        workload=workload.described(np.array(there, dtype=np.int64), decided.clients),
        memory_B={_name(c): {"weights": size, "gradients": size, "optimizer": size} for c in there},
    )


def _server_group(cluster: Cluster, strategy: Strategy) -> dict[str, Group]:
    return {SERVER: Group(axes=(("one", 1, 1),), offset=cluster.n_ranks - 1)} if strategy.has_server else {}


def _name(client: int) -> str:
    return f"client {client}"


def _train_and_send(
    draft: Draft, workload: FederatedMoE, strategy: Strategy, decided: Round, there: list[int]
) -> list[str]:
    """The model to each client, its training, and its answer; returns what the server waits for."""
    steps, params = workload.steps(decided.clients), workload.params
    ops: dict[int, tuple[Any, ...]] = {}
    ends = []
    for c in there:
        name, count = _name(c), int(steps[c])
        if count not in ops:
            ops[count] = step_kernels(workload.shape, params.batch, params.optimizer, count, dense=params.dense)
        kernels = ops[count]
        got = None
        if strategy.has_server:
            down = Transfer(source=SERVER, target=name, nbytes=int(decided.down_B[c]), stream=f"down {c}")
            got = draft.add(f"down/{c}", down)
        last = draft.add(f"train/{c}", Compute(group=name, kernels=kernels), (got,))
        if strategy.has_server:
            up = Transfer(source=name, target=SERVER, nbytes=int(decided.up_B[c]), stream=f"up {c}")
            last = draft.add(f"up/{c}", up, (last,))
        ends.append(last)
    return ends


def _aggregate(draft: Draft, workload: FederatedMoE, decided: Round, before: list[str]) -> None:
    shape, clients = workload.shape, int(decided.there.sum())
    of = {
        "embedding": shape.embedding_elements,
        "gate": shape.gate_elements,
        "experts": shape.experts * shape.expert_elements,
    }
    kernels = averaging_kernels(sum(of[p] for p in decided.averaged), clients, shape.dtype)
    if decided.refreshed:
        kernels += similarity_kernels(shape, clients)
    draft.add("aggregate", Compute(group=SERVER, kernels=kernels), before)


def _exchange(draft: Draft, workload: FederatedMoE, strategy: Strategy, decided: Round, there: list[int]) -> None:
    """The lists, the flows between clients, and the mixing of what came."""
    if strategy.system == "fedmoe_da":
        for c in there:
            op = Transfer(source=SERVER, target=_name(c), nbytes=int(decided.list_B[c]), stream=f"list {c}")
            draft.add(f"list/{c}", op, ("aggregate",))
    flows = decided.flows
    waits: dict[int, list[int]] = {}
    for first, second in decided.after.tolist():
        waits.setdefault(second, []).append(first)
    came: dict[int, list[str]] = {}
    ids: list[str] = []
    for i, (target, source, nbytes) in enumerate(zip(*(x.tolist() for x in flows), strict=True)):
        op = Transfer(source=_name(source), target=_name(target), nbytes=nbytes, stream=f"peer {i}")
        ready = (f"list/{target}",) if strategy.has_server else (f"train/{source}", f"train/{target}")
        number = f"#{len(came.get(target, []))}" if strategy.relays else ""
        ids.append(draft.add(f"peer/{source}->{target}{number}", op, (*ready, *(ids[b] for b in waits.get(i, [])))))
        came.setdefault(target, []).append(ids[-1])
    if decided.mixing is not None:
        entries = np.diff(decided.mixing.ptr).reshape(-1, decided.mixing.experts).sum(axis=1)
        for c in there:
            kernels = mixing_kernels(workload.shape, int(entries[c]))
            draft.add(f"mix/{c}", Compute(group=_name(c), kernels=kernels), (f"list/{c}", *came.get(c, [])))


def decisions(strategy: Strategy, decided: Round) -> dict[str, Any]:
    """The strategy's answer in its own words: settings, bytes, and of what each expert is made."""
    there = max(int(decided.there.sum()), 1)
    found: dict[str, Any] = {
        "system": strategy.system,
        "settings": {n: getattr(strategy, n) for n in strategy.__slots__ if n != "system"},
        "clients": int(decided.there.sum()),
        "averaged_by_server": list(decided.averaged),
        "bytes": {
            "server up": int(decided.up_B.sum()),
            "server down": int(decided.down_B.sum() + decided.list_B.sum()),
            "peers": decided.peer_B,
            "peers, most sent by a client": int(np.bincount(decided.flows.source, decided.flows.nbytes).max(initial=0)),
            "server, of an average client": decided.server_B / there,
        },
    }
    if decided.mixing is not None:
        foreign = decided.mixing.row // decided.mixing.experts != decided.mixing.source // decided.mixing.experts
        found["experts_fetched"] = int(decided.copied.sum()) if decided.copied is not None else 0
        found["most_wanted_expert"] = int(decided.copied.max(initial=0)) if decided.copied is not None else 0
        found["mean_cosine"] = float(decided.mixing.cosine[foreign].mean()) if foreign.any() else None
        found["mixing"] = {
            "ptr": decided.mixing.ptr.tolist(),
            "source": decided.mixing.source.tolist(),
            "weight": decided.mixing.weight.tolist(),
        }
    found["flows"] = np.stack(decided.flows, axis=1).tolist()
    assert json.dumps(found, allow_nan=False)
    return found
