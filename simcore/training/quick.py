"""An iteration of training in closed form, for thousands of configurations at once.

time = m passes of the slowest stage + (p - 1)/v passes of bubble (Narayanan et al. 2021, section 2.2) + communication that nothing
hides + optimizer. Contention between communicators and the order of events are left to the simulator.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels import memory
from costmodels.kernels import Kernel
from simcore.training.choice import Choice
from simcore.training.configurations import Configurations
from simcore.training.overheads import NONE, Overheads
from simcore.training.quick_parts import PASSES, SPENT, Parts
from simcore.training.streaming_states import Streams, in_streams

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Choose = Callable[[Configurations, int], Choice]
"""The full choice behind a row."""

SLICE = ("tp", "cp", "microbatch", "recompute")
PLACES = ("dp", "tp", "cp", "pp")
ADDING = [SPENT.index("streaming"), SPENT.index("kernels")]


@dataclass(frozen=True)
class Quick:
    """Estimates of seconds and memory, of one workload on one cluster.

    `overheads` are what jobs add to kernels and collectives; without `overlap` gradients are reduced after all passes; with
    `gathers_beside` ZeRO 1 and 2 gather parameters during the next forward pass; `ends_count` as
    `Choice.ends_count_as_layers`; `states` are bytes of a parameter where a framework keeps others than usual; `transient` is the
    share of a layer's activations that is there twice while its backward pass runs, as the gradients of them; `settles` as in
    `Streams`.
    """

    parts: Parts
    choose: Choose
    overheads: Overheads = NONE
    overlap: bool = True
    gathers_beside: bool = False
    ends_count: bool = False
    states: memory.States | None = None
    overhead_B: float = memory.OVERHEAD_B
    transient: float = 0.0
    settles: bool = False

    def seconds(self, table: Configurations) -> Floats:
        """(rows,) of one iteration."""
        extra = self.overheads
        layer_f, layer_b, embed, head = self._passes(table)
        (send,) = self._each(table, (*PLACES, "microbatch"), self.parts.send)
        gather, reduce, last, together, step = self._each(
            table, (*PLACES, "zero"), self.parts.replicas, self.parts.step_kernels
        )
        m, layers = self._microbatches(table), self._layers(table)
        fetches, steady = table.zero == 3, (table.zero == 2) & (table.vpp == 1)
        streams = Streams(
            forward=layers * layer_f,
            backward=layers * layer_b,
            gather=np.where(fetches, gather, 0.0),
            reduce=np.where(fetches | steady, reduce, 0.0),
            together=together,
            lost=max(self.parts.slowdown, extra.exposed),
            settles=self.settles,
        )
        forward, backward, grows, leaving = in_streams(streams)
        passes = forward + backward + np.where(table.pp == 1, embed + head, np.maximum(embed, head))
        empty, hops = _waiting(table, m)
        bubble = empty * (forward + backward) + 2 * hops * send
        after = np.maximum((m - 1) * grows + leaving, last)
        left = np.where(fetches | steady, after, self._unhidden(table, reduce, last, backward))
        refill = np.where((table.zero == 1) | (table.zero == 2), self._refill(gather, forward), 0.0)
        whole = m * (passes + extra.microbatch_s) + bubble + left + step * extra.streaming + refill + extra.step_s
        return np.asarray(whole * extra.slowest(self.parts.cluster.n_ranks))

    def _passes(self, table: Configurations) -> tuple[Floats, Floats, Floats, Floats]:
        """Seconds of a layer forward and backward, of the embedding and of the head both ways."""
        found = self._each(table, SLICE, self.parts.passes, self.parts.pass_kernels)
        spent = found.reshape(len(PASSES), len(SPENT), -1)
        spent[1::2, ADDING] += self._accumulation(table)
        each = [self._pass(dict(zip(SPENT, piece, strict=True))) for piece in spent]
        return each[0], each[1], each[2] + each[3], each[4] + each[5]

    def _accumulation(self, table: Configurations) -> Floats:
        """(layer embedding head, seconds launches, rows) of adding gradients to their sums; of shards with ZeRO 3."""
        shards = np.where(table.zero == 3, table.dp * table.cp, 1)
        columns = (table.tp, table.pp, shards)
        seconds = self._each(table, columns, self.parts.accumulation, self.parts.accumulation_kernels)
        return np.stack([seconds, seconds > 0], axis=1)

    def _pass(self, spent: dict[str, Floats]) -> Floats:
        """Tasks of a piece as they follow and hide each other in a plan."""
        extra = self.overheads
        computing = extra.products * spent["products"] + extra.narrow * spent["narrow"]
        computing = computing + extra.attention * spent["attention"]
        computing = computing + extra.streaming * spent["streaming"] + extra.kernel_s * spent["kernels"]
        core = self._beside(extra.attention * spent["core"], spent["exchange"], share=0.0)
        return spent["before"] + self._beside(computing, spent["beside"], share=0.0) + core + spent["after"]

    def _layers(self, table: Configurations) -> Floats:
        """Layers of the fullest stage; chunks are as even as they can be."""
        chunks = table.pp * table.vpp
        layers = self.parts.workload.model.layers
        counted = -(-(layers + 2) // chunks) if self.ends_count else -(-layers // chunks)
        return np.asarray(np.minimum(counted * table.vpp, layers), dtype=np.float64)

    def _beside(self, computing: Floats, communicating: Floats, share: float | None = None) -> Floats:
        """Both at once: the longer, and what communication takes from the computing beside it or does not hide."""
        exposed = self.overheads.exposed if share is None else share
        shorter = np.minimum(computing, communicating)
        return np.asarray(np.maximum(computing, communicating) + max(self.parts.slowdown, exposed) * shorter)

    def _refill(self, gather: Floats, forward: Floats) -> Floats:
        """Gathering parameters after the optimizer; or, chunk by chunk, during the next forward pass."""
        if not self.gathers_beside:
            return gather
        hidden = np.minimum(gather, forward)
        return np.asarray(gather - hidden + max(self.parts.slowdown, self.overheads.exposed) * hidden)

    def _unhidden(self, table: Configurations, reduce: Floats, last: Floats, backward: Floats) -> Floats:
        """What reducing gradients adds: the last bucket, or what is longer than the passes it hides behind, and the speed that the
        rest takes from them. ZeRO 2 with several chunks reduces once for each group of microbatches."""
        m = self._microbatches(table)
        times = np.where((table.zero == 2) & (table.vpp > 1), -(-m // table.pp), 1)
        hiding = backward * np.where(table.vpp > 1, np.minimum(m, table.pp), 1) * times
        if not self.overlap:
            return np.asarray(times * reduce)
        left = np.maximum(times * reduce - hiding, last)
        lost = max(self.parts.slowdown, self.overheads.exposed)
        return np.asarray(left + lost * np.maximum(times * reduce - left, 0.0))

    def memory_B(self, table: Configurations) -> Floats:
        """(rows,) of the fullest rank: on the first stage, which holds most microbatches, or the last, which has the head."""
        held, again, head, whole = self._each(table, SLICE, self.parts.activations)
        layers = self._layers(table) / table.vpp
        inflight = np.minimum(_passes_in_flight(table), np.ceil(self._microbatches(table)) * table.vpp)
        ends = np.stack([np.where(table.pp == 1, head, 0.0), head])
        overhead = self.overhead_B if any(d.kind == "gpu" for d in self.parts.cluster.devices) else 0.0
        held_B: Floats = self._states(table) + inflight * layers * held + ends
        return np.asarray(held_B.max(axis=0) + again + self.transient * whole + overhead, dtype=np.float64)

    def _states(self, table: Configurations) -> Floats:
        """(2, rows) bytes of model states, and of what ZeRO holds unsharded for a while, on the first and on the last stage."""
        layer, embed, head, routed = self._each(table, ("tp", "pp"), lambda c: self.parts.elements(c.tp, c.pp))
        both, layers = embed + head, self._layers(table)
        ends = np.stack([np.where(table.pp == 1, both, embed), np.where(table.pp == 1, both, head)])
        work, shards = self.parts.workload, table.dp * table.cp
        each = self.states or memory.bytes_per_parameter(work.precision, master_weights=True)
        states = (layer * layers + ends) * _sharded(each, table.zero, shards)
        states = states + routed * layers * _sharded(each, table.zero, np.maximum(shards * table.tp / self.parts.ep, 1))
        chunk = np.where(table.vpp > 1, layer * layers / table.vpp, 2 * layer)
        unsharded = np.where(table.zero == 2, each.gradients * chunk, 0.0)
        unsharded += np.where(table.zero == 3, (each.gradients + each.weights) * 2 * layer, 0.0)
        return np.asarray(states + np.where(shards > 1, unsharded, 0.0))

    def _microbatches(self, table: Configurations) -> Floats:
        """Of a replica; a smaller one at the end counts as its share."""
        return np.asarray(self.parts.workload.global_batch / (table.dp * table.microbatch), dtype=np.float64)

    def _each(
        self,
        table: Configurations,
        columns: Sequence[str | Ints],
        cost: Callable[[Choice], tuple[float, ...]],
        kernels: Callable[[Choice], Iterable[Kernel]] | None = None,
    ) -> Floats:
        """(numbers, rows) of `cost`, computed once for all rows that agree in the columns, named or given; `kernels` are what it
        needs prices of."""
        given = [getattr(table, column) if isinstance(column, str) else column for column in columns]
        first, of_row = _distinct(given)
        choices = [self.choose(table, int(i)) for i in first]
        if kernels is not None:
            self.parts.price(k for choice in choices for k in kernels(choice))
        return np.array([cost(choice) for choice in choices], dtype=np.float64)[of_row].T


def _distinct(columns: Sequence[Ints]) -> tuple[Ints, Ints]:
    """First row of each distinct combination of the columns, and which one each row has."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, place = np.unique(column, return_inverse=True)
        code = code * len(values) + place.reshape(-1)
    _, first, of_row = np.unique(code, return_index=True, return_inverse=True)
    return first, of_row.reshape(-1)


def _waiting(table: Configurations, m: Floats) -> tuple[Floats, Floats]:
    """(rows,) passes that a stage waits for the others, and sends to the next stage that nothing hides, each way.

    Where there are fewer microbatches than stages, every chunk waits until the first of them has been through all stages.
    """
    missing = np.where(table.vpp > 1, np.maximum(table.pp - m, 0.0), 0.0)
    empty = (table.pp - 1 + missing * (table.vpp - 1)) / table.vpp
    return np.asarray(empty), np.where(missing > 0, table.pp * table.vpp, table.pp) - 1.0


def _passes_in_flight(table: Configurations) -> Ints:
    """(2, rows) chunks of microbatches that the first and the last stage hold at most: warm-up passes and one more."""
    last = (table.vpp - 1) * table.pp + 1
    first = np.where(table.vpp == 1, table.pp, 2 * (table.pp - 1) + last)
    return np.stack([first, last])


def _sharded(each: memory.States, zero: Ints, shards: Ints | Floats) -> Floats:
    """Bytes of a parameter's states on one rank."""
    parts = ((3, each.weights), (2, each.gradients), (1, each.optimizer))
    return np.asarray(sum(B / np.where(zero >= stage, shards, 1) for stage, B in parts), dtype=np.float64)
