"""Rounds one after the other on a cluster's links: who comes, who is waited for, what arrives, and how long it takes.

A round: every chosen client gets what the server averaged, trains, and sends. The server goes on when all have answered, or as
`Rules` say. Then clients fetch from each other; what does not arrive is left out of the mixture, and nobody loses its own model.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels import Kernel
from simcore.cluster import Cluster
from simcore.engine.placement import Costs
from simcore.errors import Problem, ScenarioError
from simcore.federated.aggregation import Mixing, missing
from simcore.federated.exchange import ModelParts
from simcore.federated.links import Links
from simcore.federated.moe_model import averaging_kernels, mixing_kernels, similarity_kernels, step_kernels
from simcore.federated.outcome import Outcome, Rules, traffic_usd
from simcore.federated.player import Stop, Traffic, link_bytes, play, to_clients, to_server
from simcore.federated.rounds import Round, Strategy
from simcore.federated.strategies import decide, download_B, upload_B
from simcore.plan import Compute
from simcore.workloads.federated_moe import PAIRS, ClientFault, FederatedMoE

if TYPE_CHECKING:
    from simcore.scenario import Scenario

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Federation:
    """A workload on a cluster, and what it has come to after some rounds. Clients are the first ranks, the server is the last."""

    def __init__(
        self, workload: FederatedMoE, cluster: Cluster, cost: Costs, strategy: Strategy, rules: Rules | None = None
    ) -> None:
        self.workload, self.cluster, self.strategy, self.rules = workload, cluster, strategy, rules or Rules()
        self.links = Links(cluster, cost)
        self.access = self.links.access()
        self.parts: ModelParts = workload.shape.parts
        self.clients = self.links.clients
        self.now_s, self.number = 0.0, 0
        self.basis: Mixing | None = None
        _check(workload, self.rules, cluster)
        params = workload.params
        each = step_kernels(workload.shape, params.batch, params.optimizer, dense=params.dense)
        step_s = np.array([cost.compute(Compute(group="", kernels=each), d).seconds for d in cluster.devices])
        self.train_s: Floats = step_s[cluster.device_index[: self.clients]] * workload.steps(self.clients)

    def rounds(self, count: int) -> Iterator[Outcome]:
        """The next `count` rounds."""
        for _ in range(count):
            yield self.round()

    def round(self) -> Outcome:
        """The next round."""
        number, begins_s = self.number, self.now_s
        chosen = self.workload.chosen(self.clients, number, begins_s)
        stops = self._stops(chosen)
        arrived_s = self._answers(chosen, stops)
        goes_on_s = self._goes_on(chosen, arrived_s, stops)
        there = np.zeros(self.clients, dtype=bool)
        there[chosen[arrived_s <= goes_on_s]] = True
        needs_gates = self.strategy.refreshes(number) or (self.strategy.system == "fedmoe_da" and self.basis is None)
        decided = decide(
            self.strategy,
            self.parts,
            number,
            there,
            self.access,
            self.workload.rng(PAIRS, number),
            gates=self.workload.gates(self.clients, number) if needs_gates else None,
            basis=self.basis,
        )
        self.basis = decided.basis
        exchanged_s, lost = self._exchange(decided, goes_on_s, stops)
        self.number, self.now_s = number + 1, begins_s + exchanged_s
        struck = [s for s in stops if s.at_s < exchanged_s]
        return self._outcome(decided, begins_s, exchanged_s, chosen, arrived_s, lost, struck)

    def _stops(self, chosen: Ints) -> list[Stop]:
        """Clients of this round that die, leave or stall, and when."""
        number = self.number
        stays_s = self.workload.online_for_s(self.clients, self.now_s)[chosen]
        leaves_s = np.minimum(self.workload.leaves_after(chosen, number) * self.train_s[chosen], stays_s)
        found = [
            Stop(at_s=at_s, client=client)
            for client, at_s in zip(chosen.tolist(), leaves_s.tolist(), strict=True)
            if np.isfinite(at_s)
        ]
        there = set(chosen.tolist())
        faults = [f for f in self._faults() if f.client in there and f.kind != "garbage"]
        return found + [Stop(at_s=f.at, client=f.client, dies=f.kind == "killed") for f in faults]

    def _faults(self) -> list[ClientFault]:
        return [f for f in self.workload.params.faults if f.round == self.number]

    def _answers(self, chosen: Ints, stops: list[Stop]) -> Floats:
        """(chosen,) when each client's answer is at the server, or its training done where there is none; inf: never."""
        n, train_s = len(chosen), self.train_s[chosen]
        if not self.strategy.has_server:
            dies_s = self._gone_s(chosen, [s for s in stops if s.dies])
            return np.where(train_s <= dies_s, train_s, np.inf)
        gone_s = self._gone_s(chosen, stops)
        down = np.full(n, download_B(self.strategy, self.parts))
        up = np.full(n, upload_B(self.strategy, self.parts, self.number))
        began_s = to_clients(self.links, chosen, down, np.zeros(n), gone_s)
        end_s = to_server(self.links, chosen, up, began_s + train_s, gone_s)
        limit = self.rules.deadline_s if self.rules.deadline_s is not None else np.inf
        return np.where(end_s <= limit, end_s, np.inf)

    def _gone_s(self, clients: Ints, stops: list[Stop]) -> Floats:
        """(clients given,) when each stops, inf: never."""
        gone_s: Floats = np.full(self.clients, np.inf)
        np.minimum.at(gone_s, [s.client for s in stops], [s.at_s for s in stops])
        return gone_s[clients]

    def _goes_on(self, chosen: Ints, arrived_s: Floats, stops: list[Stop]) -> float:
        """When the server, or where there is none everybody, goes on."""
        rules, came = self.rules, np.sort(arrived_s[np.isfinite(arrived_s)])
        died = {s.client: s.at_s for s in stops if s.dies}
        away = chosen[~np.isfinite(arrived_s)].tolist()
        ends = [*came[-1:].tolist(), *(died.get(c, np.inf) for c in away)]  # a connection that closes is noticed
        waits_s = max(ends, default=0.0)
        needed = int(np.ceil(rules.quorum * len(chosen)))
        if rules.quorum < 1 and 0 < needed <= len(came):
            waits_s = min(waits_s, float(came[needed - 1]))
        return min(waits_s, rules.deadline_s if rules.deadline_s is not None else np.inf)

    def _exchange(self, decided: Round, goes_on_s: float, stops: list[Stop]) -> tuple[float, Bools]:
        """Seconds from the start of the round until all that go on have what they can get, and which flows are lost."""
        there = np.flatnonzero(decided.there)
        flows, n = decided.flows, len(there)
        listed = self.strategy.system == "fedmoe_da"
        if not self.strategy.has_server:
            goes_on_s = 0.0
        gone = [
            Stop(at_s=max(s.at_s - goes_on_s, 0.0), client=s.client, dies=s.dies)
            for s in stops
            if decided.there[s.client]
        ]
        ready_s = np.zeros(self.clients)  # of each client, from when the server goes on
        if listed:
            begins_s = np.full(n, self._server_s(decided, n))
            ready_s[there] = to_clients(self.links, there, decided.list_B[there], begins_s, self._gone_s(there, gone))
        wait_s = ready_s[flows.target]
        if not self.strategy.has_server:
            wait_s = np.maximum(self.train_s[flows.source], self.train_s[flows.target])
        timeout_s = self.rules.peer_timeout_s if self.rules.peer_timeout_s is not None else np.inf
        traffic = Traffic(
            source=flows.source, target=flows.target, nbytes=flows.nbytes, wait_s=wait_s, after=decided.after
        )
        end_s = play(self.links, traffic, stops=gone, until_s=timeout_s)
        lost = np.isnan(end_s)
        dead = np.full(self.clients, np.inf)
        dead[[s.client for s in gone if s.dies]] = [s.at_s for s in gone if s.dies]
        waited_s = np.where(lost, np.minimum(dead[flows.source], timeout_s), end_s)
        done_s = np.nan_to_num(ready_s)
        np.maximum.at(done_s, flows.target, waited_s)
        done_s += self._mixing_s(decided)
        if not self.strategy.has_server:
            done_s[there] = np.maximum(done_s[there], self.train_s[there])
        last_s = float(done_s[done_s <= dead].max(initial=0.0 if listed or not n else self._server_s(decided, n)))
        refused = np.isin(flows.source, [f.client for f in self._faults() if f.kind == "garbage"])
        return goes_on_s + last_s, lost | refused

    def _server_s(self, decided: Round, clients: int) -> float:
        """Averaging, and the matrix where it is computed anew."""
        size = sum(
            {"embedding": self.parts.embedding_B, "gate": self.parts.gate_B}.get(
                p, self.parts.experts * self.parts.expert_B
            )
            for p in decided.averaged
        )
        kernels = averaging_kernels(size // 4, clients, self.workload.shape.dtype)
        if decided.refreshed and clients:
            kernels += similarity_kernels(self.workload.shape, clients)
        return self._seconds(kernels, self.links.server) if kernels else 0.0

    def _mixing_s(self, decided: Round) -> Floats:
        """(clients,) how long each takes to mix its experts."""
        out = np.zeros(self.clients)
        if decided.mixing is None:
            return out
        there = np.flatnonzero(decided.there)
        entries = np.diff(decided.mixing.ptr).reshape(-1, self.parts.experts).sum(axis=1)[there]
        alike = np.stack([self.cluster.device_index[there], entries])
        _, first, inverse = np.unique(alike, axis=1, return_index=True, return_inverse=True)
        each = [self._seconds(mixing_kernels(self.workload.shape, int(entries[i])), int(there[i])) for i in first]
        out[there] = np.array(each)[inverse.reshape(-1)] if each else 0.0
        return out

    def _seconds(self, kernels: tuple[Kernel, ...], rank: int) -> float:
        return self.links.cost.compute(Compute(group="", kernels=kernels), self.cluster.device(rank)).seconds

    def _outcome(
        self,
        decided: Round,
        begins_s: float,
        seconds: float,
        chosen: Ints,
        arrived_s: Floats,
        lost: Bools,
        stops: list[Stop],
    ) -> Outcome:
        died = {s.client for s in stops if s.dies}
        away = chosen[~decided.there[chosen]].tolist()
        mixing, flows = decided.mixing, decided.flows
        if mixing is not None and lost.any():
            pairs = np.unique(flows.target[lost] * self.clients + flows.source[lost])
            entry = mixing.row // mixing.experts * self.clients + mixing.source // mixing.experts
            mixing = missing(mixing, np.isin(entry, pairs))
        away_from = None
        if mixing is not None:
            foreign = mixing.row // mixing.experts != mixing.source // mixing.experts
            away_from = float(mixing.cosine[foreign].mean()) if foreign.any() else None
        traffic = self._whole(decided)
        load = link_bytes(self.links, traffic)
        busiest = int(np.argmax(load / self.links.capacity_B_per_s))
        finite = arrived_s[np.isfinite(arrived_s)]
        return Outcome(
            number=decided.number,
            begins_s=begins_s,
            seconds=seconds,
            trained_s=float(finite.max(initial=0.0)),
            chosen=len(chosen),
            there=int(decided.there.sum()),
            left=tuple(c for c in away if c in died),
            late=tuple(c for c in away if c not in died),
            unheard=self._unheard(decided, lost, stops),
            refreshed=decided.refreshed,
            flows=len(traffic.source),
            server_up_B=int(decided.up_B.sum()),
            server_down_B=int(decided.down_B.sum() + decided.list_B.sum()),
            peer_B=decided.peer_B,
            cosine=away_from,
            link=self.cluster.fabric.link_name(busiest),
            energy_J=self._energy_J(chosen),
            usd=self._usd(seconds, load),
            mixing=mixing,
        )

    def _unheard(self, decided: Round, lost: Bools, stops: list[Stop]) -> tuple[int, ...]:
        """Whom others waited for or refused, and who stopped after its training had counted."""
        stopped = np.zeros(self.clients, dtype=bool)
        stopped[[s.client for s in stops]] = True
        asked = decided.flows.source[lost & ~stopped[decided.flows.target]]
        return tuple(np.union1d(asked, np.flatnonzero(stopped & decided.there)).tolist())

    def _whole(self, decided: Round) -> Traffic:
        """Everything that the round sends, without its order."""
        there, flows = np.flatnonzero(decided.there), decided.flows
        heads = there if self.strategy.has_server else there[:0]
        server = np.full(len(heads), self.links.server)
        down = (decided.down_B + decided.list_B)[heads]
        return Traffic(
            source=np.concatenate([server, heads, flows.source]),
            target=np.concatenate([heads, server, flows.target]),
            nbytes=np.concatenate([down, decided.up_B[heads], flows.nbytes]),
            wait_s=np.empty(0),
            after=np.empty((0, 2), dtype=np.int64),
        )

    def _energy_J(self, chosen: Ints) -> float | None:
        power = [d.power_W for d in self.cluster.devices]
        used = self.cluster.device_index[chosen]
        if any(power[k] is None for k in np.unique(used).tolist()):
            return None
        watts = np.array([p or 0.0 for p in power])[used]
        return float((watts * self.train_s[chosen]).sum())

    def _usd(self, seconds: float, load_B: Floats) -> float | None:
        hourly = np.array([d.price_usd_per_hour or 0.0 for d in self.cluster.devices])[self.cluster.device_index]
        traffic = traffic_usd(self.cluster, load_B)
        total = float(hourly.sum()) * seconds / 3600 + traffic
        return total if total else None


def federation_of(scenario: "Scenario") -> Federation:
    """The federation that a scenario describes. Raises `ScenarioError` for a scenario of something else."""
    workload, planner = scenario.workload(), scenario.sections["planner"]
    if not isinstance(workload, FederatedMoE) or not hasattr(planner.module, "strategy"):
        given = f"{scenario.sections['workload'].name} planned by {planner.name}"
        problem = Problem("workload.name", given, "federated_moe with a planner of federated training")
        raise ScenarioError("a scenario without rounds", [problem])
    strategy: Strategy = planner.module.strategy(planner.params)
    return Federation(workload, scenario.cluster(), scenario.cost(), strategy, planner.params.rules)  # type: ignore[attr-defined]


def _check(workload: FederatedMoE, rules: Rules, cluster: Cluster) -> None:
    problems: list[Problem] = []
    clients = cluster.n_ranks - 1
    if cluster.cores is not None:
        advice = "`windtunnel run` plays a round of clients that share cores."
        problems.append(
            Problem("cluster.cores", str(cluster.cores), "none: each client has a device of its own", advice)
        )
    for i, fault in enumerate(workload.params.faults):
        at = f"workload.faults.{i}"
        if fault.client >= clients:
            problems.append(Problem(f"{at}.client", str(fault.client), f"0 to {clients - 1}"))
        if fault.kind == "stalls" and (rules.deadline_s is None or rules.peer_timeout_s is None):
            advice = "Without both, everybody waits for a client that stalls for ever."
            problems.append(Problem(at, "stalls", "`deadline` and `peer_timeout` of the planner", advice))
    if problems:
        raise ScenarioError("a federation whose rounds cannot be played", problems)
