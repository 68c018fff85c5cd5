"""From a decision to the plan of one iteration: every call's tasks on its pool, transitions, and batches that go between pools."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from costmodels import generation, generation_eager, memory
from simcore.cluster import Cluster
from simcore.hybridflow import layout
from simcore.hybridflow.call_tasks import forward_tasks, generation_kernels, renamed, unawaited, update_tasks
from simcore.hybridflow.dataflow import Call
from simcore.hybridflow.generation_costs import Degrees
from simcore.hybridflow.layout import Pool
from simcore.hybridflow.planning import BYTES_PER_TOKEN, Planning
from simcore.hybridflow.pool_choice import Generating
from simcore.hybridflow.resharding import Resharding
from simcore.hybridflow.search import Decision
from simcore.hybridflow.transition import MATRICES, broadcast_of, gather_of, reshard, start_kernels
from simcore.plan import Collective, Compute, Group, Op, Plan, Task, Transfer


def rlhf_plan(
    name: str, planning: Planning, decision: Decision, cluster: Cluster, decisions: Mapping[str, Any]
) -> Plan:
    """The plan of one iteration; `decisions` is the planner's answer in its own words."""
    writer = _Writer(planning, layout.placed(decision))
    writer.write()
    return Plan(
        name=name,
        n_ranks=cluster.n_ranks,
        groups=writer.groups,
        tasks=tuple(writer.tasks),
        decisions=decisions,
        workload=planning.workload.described(),
        memory_B=writer.memory_B(),
    )


class _Writer:
    """Lists the tasks call by call. `ends` has the last tasks of each call, `last` those of the last call of each pool."""

    def __init__(self, planning: Planning, pools: tuple[Pool, ...]) -> None:
        self.planning, self.workload, self.pools = planning, planning.workload, pools
        self.pool_of = layout.pool_of(pools)
        self.groups: dict[str, Group] = {p.name: layout.whole_group(p) for p in pools}
        self.tasks: list[Task] = []
        self.ends: dict[str, list[str]] = {}
        self.where: dict[str, Pool] = {}
        self.last: dict[str, list[str]] = {p.name: [] for p in pools}
        self.sent: dict[tuple[str, str], list[str]] = {}
        self.started: set[str] = set()
        for pool in pools:
            for role, strategy in pool.choice.strategies.items():
                self.groups |= layout.stage_groups(role, strategy.choice, pool.first)

    def write(self) -> None:
        """All calls in the order of the dataflow."""
        making: Mapping[str, Callable[[Call, Pool, list[str]], list[str]]] = {
            "generate": self._generate,
            "forward": self._forward,
            "train": self._train,
            "compute": lambda _call, _pool, waits: waits,
        }
        for call in self.workload.dataflow.calls:
            pool = self.pool_of[call.role or self._generating]
            if not call.role and not self.workload.generation.padded:
                continue  # the controller computes it meanwhile
            inputs = self.workload.dataflow.inputs(call, self.ends)
            waits = [*self.last[pool.name], *(t for a in inputs for t in self._arrived(a, pool))]
            waits = self._fetch(call, pool, list(dict.fromkeys(waits)))
            if call.kind != "train":
                waits = self._called(call.name, pool, waits, self.workload.sequences)
            ends = self._put_back(call, pool, making[call.kind](call, pool, waits))
            self.ends[call.name] = self.last[pool.name] = ends
            self.where[call.name] = pool

    def add(self, name: str, op: Op, after: list[str], activation_B: float = 0.0) -> str:
        self.tasks.append(Task(name, op, tuple(dict.fromkeys(after)), round(activation_B)))
        return name

    @property
    def _generating(self) -> str:
        """The role whose pool also computes numbers that no model makes."""
        dataflow = self.workload.dataflow
        return next(role for role in dataflow.roles if dataflow.generates(role))

    def _arrived(self, call: str, pool: Pool) -> list[str]:
        """Tasks after which the results of a call are in a pool, sent there if they were made in another."""
        source = self.where[call]
        if source.name == pool.name:
            return self.ends[call]
        key = (call, pool.name)
        if key not in self.sent:
            self.sent[key] = [self._send(call, source, pool)]
        return self.sent[key]

    def _send(self, call: str, source: Pool, pool: Pool) -> str:
        """A batch from pool to pool: spread over as many ranks as both have."""
        n = min(source.choice.n, pool.choice.n)
        at = f"{call}/to_{pool.name}"
        for end, ranks in (("from", source.ranks), ("at", pool.ranks)):
            self.groups[f"{at}/{end}"] = Group.listed(layout.spread(ranks, n))
        nbytes = self.workload.tokens_per_iteration * BYTES_PER_TOKEN // n
        op = Transfer(source=f"{at}/from", target=f"{at}/at", nbytes=nbytes, stream="batches")
        return self.add(at, op, self.ends[call])

    def _fetch(self, call: Call, pool: Pool, waits: list[str]) -> list[str]:
        return self._copy(call, pool, waits, "fetch") if self._moves(call) else waits

    def _called(self, name: str, pool: Pool, waits: list[str], sequences: int) -> list[str]:
        """The controller's call, where it was measured what that takes; a rank reads its part of the batch."""
        if not _eager(pool):
            return waits
        nbytes = self.workload.seq_len * sequences * BYTES_PER_TOKEN // pool.choice.n
        op = Compute(group=pool.name, kernels=(generation.controller_call(nbytes),))
        return [self.add(f"{name}/call", op, waits)]

    def _put_back(self, call: Call, pool: Pool, ends: list[str]) -> list[str]:
        return self._copy(call, pool, ends, "put_back") if self._moves(call) and call.kind == "train" else ends

    def _moves(self, call: Call) -> bool:
        return call.role in self.workload.offload and call.kind != "generate"

    def _copy(self, call: Call, pool: Pool, after: list[str], what: str) -> list[str]:
        """States of an offloaded role between host and device; weights are enough for a forward pass."""
        strategy = pool.choice.strategies[call.role]
        costs = self.planning.costs_of(pool.choice.zone, call.role)
        nbytes = strategy.states_B if call.kind == "train" else costs.weights_B(strategy.choice)
        op = Compute(group=pool.name, kernels=(generation.host_copy(nbytes),))
        return [self.add(f"{call.name}/{what}", op, after)]

    def _train(self, call: Call, pool: Pool, waits: list[str]) -> list[str]:
        costs = self.planning.costs_of(pool.choice.zone, call.role)
        minibatch = self.workload.of_minibatch(call.share)
        update = replace(costs.update, global_batch=minibatch)
        tasks = update_tasks(update, pool.choice.strategies[call.role].choice, hosted=_eager(pool))
        for number in range(self.workload.updates * self.workload.epochs):
            waits = self._called(f"{call.name}/u{number}", pool, waits, minibatch)
            waits = self._passes(f"{call.name}/u{number}", call.role, pool, tasks, waits)
        return waits

    def _forward(self, call: Call, pool: Pool, waits: list[str]) -> list[str]:
        costs = self.planning.costs_of(pool.choice.zone, call.role)
        sequences = max(round(call.share * self.workload.sequences), 1)
        tasks = forward_tasks(costs.update, pool.choice.strategies[call.role], sequences, hosted=_eager(pool))
        return self._passes(call.name, call.role, pool, tasks, waits)

    def _passes(self, prefix: str, role: str, pool: Pool, tasks: list[Task], waits: list[str]) -> list[str]:
        """Tasks of a model's passes on a pool; nobody waits for a rank that is alone in one."""
        placed = tasks if pool.choice.n > 1 else unawaited(tasks)
        made, ends = renamed(placed, prefix, lambda g: f"{role}/{g}", waits)
        self.tasks += made
        return ends

    def _generate(self, call: Call, pool: Pool, waits: list[str]) -> list[str]:
        generating = pool.choice.generating
        assert generating is not None
        if call.role not in self.started:
            self.started.add(call.role)
            waits = self._transition(call, pool, generating, waits)
        costs = self.planning.generation_of(pool.choice.zone, call.role)
        replicas = self._replicas(pool, generating)
        alike: dict[bytes, list[int]] = {}
        lengths = costs.replicas(pool.choice.n, generating.degrees)
        for i, (prompts, responses) in enumerate(lengths):
            if len(prompts):
                alike.setdefault(np.stack([prompts, responses]).tobytes(), []).append(i)
        tokens = costs.cache_tokens(pool.choice.n, generating.degrees, generating.cache_B)
        held = generating.weights_B + min(generating.cache_B, tokens * costs.token_B(generating.degrees))
        ends = []
        for of in alike.values():
            group = call.role + "/generation" + ("" if len(of) == len(replicas) else f"{of[0]}")
            self.groups.setdefault(group, Group.listed(int(r) + pool.first for i in of for r in replicas[i]))
            segments = costs.segments(*lengths[of[0]], tokens)
            kernels = generation_kernels(costs, generating.degrees, segments, pool.choice.n)
            at = f"{call.name}/r{of[0]}"
            read = self.add(f"{at}/prefill", Compute(group=group, kernels=kernels[:1]), waits, held)
            ends.append(self.add(f"{at}/decode", Compute(group=group, kernels=kernels[1:]), [read], -held))
        return ends

    def _replicas(self, pool: Pool, generating: Generating) -> list[list[int]]:
        """Ranks of each generation replica, counted from the pool's first."""
        of = self._resharding(pool, generating)
        return [row.tolist() for row in of.grouping.generation_groups()]

    def _resharding(self, pool: Pool, generating: Generating) -> Resharding:
        choice = pool.choice.strategies[generating.role].choice
        return reshard(self.planning.rules.engine, choice, generating.degrees)

    def _transition(self, call: Call, pool: Pool, generating: Generating, waits: list[str]) -> list[str]:
        """Weights from the host, the engine's start, and the all-gathers of resharding; or weights from another pool."""
        costs = self.planning.generation_of(pool.choice.zone, call.role)
        model_B, layers = costs.weights_B(Degrees(1, 1)), costs.shape.layers
        if not self.workload.dataflow.trains(call.role):
            return self._weights_arrive(call, pool, model_B, layers, waits)
        if self.planning.rules.same_degrees:
            return waits
        kernels = start_kernels(self.workload, costs.weights_B(generating.degrees))
        start = self.add(f"{call.name}/transition", Compute(group=pool.name, kernels=kernels), waits)
        matrices = layers * MATRICES if self.workload.generation.padded else 1
        gather = gather_of(self._resharding(pool, generating), model_B, layers, matrices)
        if gather is None:
            return [start]
        group = f"{call.role}/resharding"
        self.groups[group] = layout.gathering_group(gather.groups, pool.first)
        op = Collective(
            kind="all_gather",
            group=group,
            along=("member",),
            nbytes=gather.nbytes,
            repeat=gather.repeat,
            stream="param",
        )
        return [self.add(f"{call.name}/reshard", op, [start])]

    def _weights_arrive(self, call: Call, pool: Pool, model_B: float, layers: int, waits: list[str]) -> list[str]:
        if pool.choice.n == 1:
            return waits
        group = f"{call.role}/weights"
        self.groups[group] = Group.listed(pool.ranks)
        return [self.add(f"{call.name}/weights", broadcast_of(group, model_B, layers), waits)]

    def memory_B(self) -> dict[str, dict[str, float]]:
        """What stays, by the groups of each role; an offloaded role holds nothing while others work."""
        found: dict[str, dict[str, float]] = {}
        for pool in self.pools:
            if pool.choice.zone.device.kind == "gpu":
                found[pool.name] = {"overhead": memory.OVERHEAD_B}
            for role, strategy in pool.choice.strategies.items():
                if role not in self.workload.offload:
                    costs = self.planning.costs_of(pool.choice.zone, role)
                    states = costs.states(strategy.choice)
                    kinds = {kind: size for kind, size in states.items() if size}
                    found |= {f"{role}/stage{s}": kinds for s in range(strategy.pp)}
        return found


def _eager(pool: Pool) -> bool:
    """Whether it was measured what the host takes for calls and modules there."""
    return generation_eager.eager_of(pool.choice.zone.device) is not None
