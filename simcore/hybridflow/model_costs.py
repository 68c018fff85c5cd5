"""What a role's calls cost in a zone under p-t-d: updates and forward passes in closed form, and the memory that they need."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from costmodels import generation_eager, measured, memory
from costmodels.kernels import WIDTH_B
from simcore.cluster import Cluster
from simcore.hybridflow.zones import Shifted, Zone, inside
from simcore.planners import fixed
from simcore.training.choice import Choice, Detail
from simcore.training.configurations import RECOMPUTE, Configurations, divisors
from simcore.training.quick import Quick
from simcore.training.quick_parts import SPENT, Parts, Prices
from simcore.workloads.rlhf import Rlhf
from simcore.workloads.transformer_training import TransformerTraining

LARGEST_MICROBATCH = 16
SHALLOW = 2
"""Stages of a pipeline that RLHF is planned with. Assumption: an update of PPO has few microbatches, and what HybridFlow ran had no
pipeline at any number of GPUs where models fit without (figure 14: t 8, p 1 for 7B and 13B)."""
FORWARD_ROOM_B = 4e9
"""What a forward pass may take for a moment; larger microbatches than that gain nothing (assumption)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How a role is spread over a pool, what its calls take, and what its ranks hold.

    `train_s` is all updates of an iteration, `forward_s` a forward pass over the batch. `states_B` stays; `working_B` is the most
    that one of its calls needs besides.
    """

    choice: Choice
    forward_microbatch: int
    train_s: float
    forward_s: float
    states_B: float
    working_B: float

    @property
    def tp(self) -> int:
        return self.choice.tp

    @property
    def pp(self) -> int:
        return self.choice.pp

    @property
    def dp(self) -> int:
        return self.choice.dp


@dataclass(frozen=True)
class Limits:
    """What strategies may be chosen from; `tp` and `pp` fix a degree, `max_pp` is the deepest pipeline otherwise.

    `detail`: `chunk` has the modules and the overlap of Megatron-LM, `layer` those of Hugging Face with nothing hidden, which is
    what the real backend runs.
    """

    zero: int = 1
    recompute: tuple[str, ...] = ("none", "selective", "full")
    tp: int | None = None
    pp: int | None = None
    max_pp: int = SHALLOW
    detail: Detail = "chunk"

    @property
    def overlap(self) -> bool:
        """Whether communication hides behind computing."""
        return self.detail == "chunk"


class RoleCosts:
    """Strategies of one role in one zone, by the size of its pool; what was found is kept."""

    def __init__(
        self, workload: Rlhf, role: str, cluster: Cluster, zone: Zone, cost: Prices, limits: Limits | None = None
    ) -> None:
        self.workload, self.role, self.zone = workload, role, zone
        self.limits = limits or Limits()
        self.shape = workload.trained(role)
        self.share = max((c.share for c in workload.dataflow.calls_of(role) if c.kind == "train"), default=1.0)
        """Part of the batch that its training works on."""
        self.update = TransformerTraining(
            model=self.shape,
            seq_len=workload.seq_len,
            global_batch=workload.of_minibatch(self.share),
            precision=workload.precision,
        )
        """One update as a training job, of as many sequences as its call works on."""
        self.parts = Parts(self.update, inside(cluster, zone), Shifted(cost, zone.first))
        self._quick = Quick(self.parts, lambda table, row: self._choice(table.row(row)), overlap=self.limits.overlap)
        self._found: dict[int, tuple[Strategy, ...]] = {}
        self._forward: dict[tuple[int, int, int], tuple[float, int, float]] = {}

    def prepare(self, sizes: Sequence[int]) -> None:
        """Finds the strategies of all pools of those sizes, together, which takes a small part of the time of one by one."""
        todo = [n for n in sizes if n not in self._found]
        if not todo:
            return
        found: dict[int, list[Strategy]] = {n: [] for n in todo}
        if self.workload.dataflow.trains(self.role):
            for n, strategy in self._trained(todo):
                found[n].append(strategy)
        else:
            for n in todo:
                found[n] = [self._forward_only(n, tp, pp) for tp, pp in self._degrees(n)]
        for n, strategies in found.items():
            self._found[n] = pareto(strategies)

    def strategies(self, n: int) -> tuple[Strategy, ...]:
        """Those on `n` ranks that nothing beats in time, states and working memory at once; fastest first."""
        self.prepare([n])
        return self._found[n]

    def _degrees(self, n: int) -> Iterator[tuple[int, int]]:
        """(tp, pp) that divide the model and the pool. Tensor parallelism stays inside a host, and where devices of a host have a
        link of their own, stages are not more than hosts (HybridFlow, algorithm 2)."""
        shape, hosts = self.shape, max(n // self.zone.per_node, 1)
        most_stages = hosts if self.zone.device.peer_link is not None else n
        most_stages = min(most_stages, self.limits.pp or self.limits.max_pp)
        for tp in divisors(n, self.zone.per_node):
            groups = shape.kv_heads % tp == 0 or tp % shape.kv_heads == 0
            if shape.heads % tp or shape.ffn % tp or not groups or self.limits.tp not in (None, tp):
                continue
            for pp in divisors(n // tp, min(shape.layers, most_stages)):
                whole = n // tp // pp <= self.workload.minibatch
                if shape.layers % pp == 0 and whole and self.limits.pp in (None, pp):
                    yield tp, pp

    def _trained(self, sizes: Sequence[int]) -> Iterator[tuple[int, Strategy]]:
        rows = [(n, row) for n in sizes for row in self._rows(n)]
        if not rows:
            return
        table = Configurations(*np.array([row for _, row in rows], dtype=np.int64).T)
        each_s, peaks = self._quick.seconds(table), self._quick.memory_B(table)
        updates = self.workload.updates * self.workload.epochs
        for i, (n, _) in enumerate(rows):
            choice = self._choice(table.row(i))
            rounds = -(-self.update.global_batch // (choice.dp * choice.microbatch)) + choice.pp - 1
            hosted_s = rounds * self._hosted_s(choice, backward=True)
            forward_s, microbatch, forward_B = self.forward(choice)
            states = self.states_B(choice)
            overhead = memory.OVERHEAD_B if self.zone.device.kind == "gpu" else 0.0
            yield (
                n,
                Strategy(
                    choice=choice,
                    forward_microbatch=microbatch,
                    train_s=(float(each_s[i]) + hosted_s) * updates * self._own(n),
                    forward_s=forward_s,
                    states_B=states,
                    working_B=max(float(peaks[i]) - states - overhead, forward_B, 0.0),
                ),
            )

    def _rows(self, n: int) -> Iterator[tuple[int, ...]]:
        """Columns of `Configurations`."""
        update, recompute = self.update, [RECOMPUTE.index(mode) for mode in self.limits.recompute]
        for tp, pp in self._degrees(n):
            dp = n // (tp * pp)
            zero = self.limits.zero if dp > 1 else 0
            for microbatch in _powers(min(-(-self.workload.minibatch // dp), LARGEST_MICROBATCH)):
                if (update.seq_len * microbatch) % tp == 0:
                    for mode in recompute:
                        yield dp, tp, pp, 1, 1, microbatch, mode, zero

    def _forward_only(self, n: int, tp: int, pp: int) -> Strategy:
        dp = n // (tp * pp)
        choice = self._choice({"dp": dp, "tp": tp, "pp": pp, "zero": self.limits.zero if dp > 1 else 0})
        seconds, microbatch, working_B = self.forward(choice)
        return Strategy(
            choice=choice,
            forward_microbatch=microbatch,
            train_s=0.0,
            forward_s=seconds,
            states_B=self.states_B(choice),
            working_B=working_B,
        )

    def forward(self, choice: Choice) -> tuple[float, int, float]:
        """Seconds of a forward pass over the whole batch, the fastest microbatch, and the memory that it takes for a moment."""
        key = (choice.tp, choice.pp, choice.dp)
        if key not in self._forward:
            each = -(-self.workload.sequences // choice.dp)
            sizes = [b for b in _powers(min(each, LARGEST_MICROBATCH)) if (self.update.seq_len * b) % choice.tp == 0]
            found = [self._forward_with(choice, each, b) for b in sizes or [1]]
            roomy = [f for f in found if f[2] <= FORWARD_ROOM_B] or found[:1]
            seconds, microbatch, working_B = min(roomy)
            self._forward[key] = seconds * self._own(choice.tp * choice.pp * choice.dp), microbatch, working_B
        return self._forward[key]

    def _own(self, n: int) -> float:
        """What passes of a pool of `n` ranks take, as a share of those of ranks that meet."""
        return measured.unawaited(self.zone.device) if n == 1 else 1.0

    def _forward_with(self, choice: Choice, sequences: int, microbatch: int) -> tuple[float, int, float]:
        """(m + p - 1) passes of the slowest stage; with ZeRO 3 a pass lasts at least as long as gathering its weights."""
        given = replace(choice, microbatch=microbatch, recompute="none")
        spent = np.array(self.parts.passes(given)).reshape(-1, len(SPENT))
        passes = spent[::2].sum(axis=1) - spent[::2, SPENT.index("kernels")]
        layer, embed, head = passes.tolist()
        ends = embed + head if choice.pp == 1 else max(embed, head)
        one = layer * self.shape.layers / choice.pp + ends + self._hosted_s(choice, backward=False)
        if choice.zero == 3:
            one = max(one, self.parts.replicas(given)[0])
        passes_through = -(-sequences // microbatch) + choice.pp - 1
        (send,) = self.parts.send(given)
        part = given.slice(self.update)
        held = 2 * memory.layer_activation_B(self.shape, part, "none") + memory.head_activation_B(self.shape, part)
        return passes_through * (one + send), microbatch, held

    def _hosted_s(self, choice: Choice, *, backward: bool) -> float:
        """What the host does for modules of tensor parallelism in a pass forward, and `backward`, where that was measured."""
        if choice.tp == 1:
            return 0.0
        layers, ways = self.shape.layers // choice.pp, (True, False) if backward else (True,)
        return sum(float(generation_eager.split_s(self.zone.device, layers, forward=way)) for way in ways)

    def states_B(self, choice: Choice) -> float:
        """Bytes that stay on the fullest rank."""
        return sum(self.states(choice).values())

    def states(self, choice: Choice) -> dict[str, float]:
        """Bytes that stay on the fullest rank by kind: weights, and of a role that is trained gradients and optimizer."""
        if not self.workload.dataflow.trains(self.role):
            return {"weights": self.weights_B(choice)}
        return asdict(
            memory.model_states(
                self.elements(choice),
                self.workload.precision,
                master_weights=True,
                zero=choice.zero,
                shards=choice.dp,
            )
        )

    def weights_B(self, choice: Choice) -> float:
        """Bytes of weights on the fullest rank."""
        width = WIDTH_B[self.workload.precision]
        return width * self.elements(choice) / (choice.dp if choice.zero == 3 else 1)

    def elements(self, choice: Choice) -> int:
        """Parameters of the fullest rank, before ZeRO."""
        layer, embed, head, _ = self.parts.elements(choice.tp, choice.pp)
        ends = embed + head if choice.pp == 1 else max(embed, head)
        return layer * self.shape.layers // choice.pp + ends

    def _choice(self, given: dict[str, int | str]) -> Choice:
        rules = {"detail": self.limits.detail, "overlap": self.limits.overlap}
        params = fixed.Params.model_validate({**given, **rules})
        return fixed.choice_of(params, self.update, self.zone.size)


def _powers(largest: int) -> list[int]:
    return [1 << i for i in range(largest.bit_length()) if 1 << i <= largest]


def pareto(strategies: Sequence[Strategy]) -> tuple[Strategy, ...]:
    """Fastest first; each has less of one kind of memory than all that are faster."""
    ordered = sorted(strategies, key=lambda s: (s.train_s + s.forward_s, s.states_B, s.working_B, s.tp, s.pp))
    kept: list[Strategy] = []
    for s in ordered:
        if not any(k.states_B <= s.states_B and k.working_B <= s.working_B for k in kept):
            kept.append(s)
    return tuple(kept)
