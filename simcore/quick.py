"""An iteration of training in closed form, for thousands of configurations at once.

time = m passes of the slowest stage + (p - 1)/v passes of bubble (Narayanan et al. 2021, section 2.2) + communication that nothing
hides + optimizer. Contention between communicators and the order of events are left to the simulator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels import memory
from simcore.configurations import Configurations
from simcore.quick_parts import Parts
from simcore.training import Choice

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Choose = Callable[[Configurations, int], Choice]
"""The full choice behind a row."""

SLICE = ("tp", "cp", "microbatch", "recompute")
MESH = ("dp", "tp", "cp", "pp", "zero")


@dataclass(frozen=True)
class Quick:
    """Estimates of seconds and memory, of one workload on one cluster."""

    parts: Parts
    choose: Choose

    def seconds(self, table: Configurations) -> Floats:
        """(rows,) of one iteration."""
        work = self.parts.workload
        layer_f, layer_b, embed, head = self._each(table, SLICE, self.parts.passes)
        (send,) = self._each(table, ("dp", "tp", "cp", "pp", "microbatch"), self.parts.send)
        gather, reduce, last, step = self._each(table, MESH, self.parts.replicas)
        layers = work.model.layers / table.pp
        m = self._microbatches(table)
        fetches, steady = table.zero == 3, (table.zero == 2) & (table.vpp == 1)
        forward = self._beside(layers * layer_f, np.where(fetches, gather, 0.0))
        backward = self._beside(layers * layer_b, np.where(fetches, gather + reduce, np.where(steady, reduce, 0.0)))
        passes = forward + backward + np.where(table.pp == 1, embed + head, np.maximum(embed, head))
        bubble = (table.pp - 1) * ((forward + backward) / table.vpp + 2 * send)
        left = np.where(fetches | steady, last, self._unhidden(table, reduce, last, backward))
        refill = np.where((table.zero == 1) | (table.zero == 2), gather, 0.0)
        return np.asarray(m * passes + bubble + left + step + refill)

    def _beside(self, computing: Floats, communicating: Floats) -> Floats:
        """Both at once, as `Parts` has it for one piece."""
        lost = self.parts.slowdown * np.minimum(computing, communicating)
        return np.asarray(np.maximum(computing, communicating) + lost)

    def _unhidden(self, table: Configurations, reduce: Floats, last: Floats, backward: Floats) -> Floats:
        """What reducing gradients adds: the last bucket, or what is longer than the passes it hides behind, and the speed that the
        rest takes from them. ZeRO 2 with several chunks reduces once for each group of microbatches."""
        m = self._microbatches(table)
        times = np.where((table.zero == 2) & (table.vpp > 1), -(-m // table.pp), 1)
        hiding = backward * np.where(table.vpp > 1, np.minimum(m, table.pp), 1) * times
        left = np.maximum(times * reduce - hiding, last)
        return np.asarray(left + self.parts.slowdown * np.maximum(times * reduce - left, 0.0))

    def memory_B(self, table: Configurations) -> Floats:
        """(rows,) of the fullest rank: on the first stage, which holds most microbatches, or the last, which has the head."""
        held, again, head = self._each(table, SLICE, self.parts.activations)
        layers = self.parts.workload.model.layers / (table.pp * table.vpp)
        inflight = np.minimum(_passes_in_flight(table), self._microbatches(table) * table.vpp)
        ends = np.stack([np.where(table.pp == 1, head, 0.0), head])
        overhead = memory.OVERHEAD_B if any(d.kind == "gpu" for d in self.parts.cluster.devices) else 0.0
        held_B: Floats = self._states(table) + inflight * layers * held + ends
        return np.asarray(held_B.max(axis=0) + again + overhead, dtype=np.float64)

    def _states(self, table: Configurations) -> Floats:
        """(2, rows) bytes of model states, and of what ZeRO holds unsharded for a while, on the first and on the last stage."""
        work = self.parts.workload
        layer, embed, head = self._each(table, ("tp", "pp"), lambda c: self.parts.elements(c.tp, c.pp))
        both = embed + head
        ends = np.stack([np.where(table.pp == 1, both, embed), np.where(table.pp == 1, both, head)])
        elements = layer * work.model.layers / table.pp + ends
        each = memory.bytes_per_parameter(work.precision, master_weights=True)
        shards = table.dp * table.cp
        divisor = [np.where(table.zero >= stage, shards, 1) for stage in (3, 2, 1)]
        states = each.weights / divisor[0] + each.gradients / divisor[1] + each.optimizer / divisor[2]
        chunk = np.where(table.vpp > 1, layer * work.model.layers / (table.pp * table.vpp), 2 * layer)
        unsharded = np.where(table.zero == 2, each.gradients * chunk, 0.0)
        unsharded += np.where(table.zero == 3, (each.gradients + each.weights) * 2 * layer, 0.0)
        return np.asarray(elements * states + np.where(shards > 1, unsharded, 0.0))

    def _microbatches(self, table: Configurations) -> Ints:
        return np.asarray(self.parts.workload.global_batch // (table.dp * table.microbatch))

    def _each(self, table: Configurations, names: Sequence[str], cost: Callable[[Choice], tuple[float, ...]]) -> Floats:
        """(numbers, rows) of `cost`, computed once for all rows that agree in the named columns."""
        keys = np.stack([getattr(table, name) for name in names], axis=1)
        _, first, of_row = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        found = np.array([cost(self.choose(table, int(i))) for i in first], dtype=np.float64)
        return found[of_row.reshape(-1)].T


def _passes_in_flight(table: Configurations) -> Ints:
    """(2, rows) chunks of microbatches that the first and the last stage hold at most: warm-up passes and one more."""
    last = (table.vpp - 1) * table.pp + 1
    first = np.where(table.vpp == 1, table.pp, 2 * (table.pp - 1) + last)
    return np.stack([first, last])
