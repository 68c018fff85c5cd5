"""A training iteration in closed form: fast enough to weigh every parallelism, good enough to say which ones to simulate.

time = (m + (p - 1) / v) passes of a stage + what gradients and weights take beyond the computation they hide behind + optimizer
(Narayanan et al. 2021, section 2.2). Contention, uneven stages and the order of events are left to the simulator.
"""

from dataclasses import dataclass, field

import numpy as np

from costmodels.kernels import WIDTH_B, Kernel, kernel
from costmodels.layers import Slice, embed, head, layer
from costmodels.memory import head_activations_B, layer_activations_B
from simcore.cluster import Cluster
from simcore.parallelism import Parallelism
from simcore.placement import Costs
from simcore.plan import Collective, CollectiveKind, Compute, Transfer
from simcore.training_plan import resident, stage_parameters
from simcore.workloads.transformer_training import Workload


@dataclass(slots=True)
class Quick:
    """Estimates for one workload on one cluster. What many parallelisms share is computed once."""

    workload: Workload
    cluster: Cluster
    cost: Costs
    _kernels: dict[tuple[Kernel, ...], float] = field(default_factory=dict)
    _layers: dict[tuple[object, ...], tuple[float, float, float]] = field(default_factory=dict)
    _moved: dict[tuple[object, ...], float] = field(default_factory=dict)

    def seconds(self, p: Parallelism) -> float:
        """One iteration."""
        m = p.microbatches(self.workload)
        forward, backward, ends = self._passes(p)
        layers = self.workload.shape.layers / p.pp
        compute = layers * (forward + backward)
        if p.zero == 3:
            compute = max(compute, layers * (2 * self._gather_layer(p) + self._scatter_layer(p)))
        elif p.zero == 2:
            compute = max(compute, layers * self._scatter_layer(p))
        stage = compute + (ends if p.pp == 1 else max(ends - compute / max(layers, 1), 0.0)) + self._sends(p)
        return (m + (p.pp - 1) / p.vpp) * stage + self._epilogue(p, layers * backward)

    def memory_B(self, p: Parallelism) -> float:
        """The fullest rank: the first stage, which holds the most microbatches at once."""
        gpu = any(d.kind == "gpu" for d in self.cluster.devices)
        states = sum(resident(self.workload, p, 0, gpu=gpu).values())
        s = p.part(self.workload)
        each = layer_activations_B(self.workload.shape, s, p.recompute) * self.workload.shape.layers / p.pp
        m = p.microbatches(self.workload)
        held = float(min(p.pp, m))
        if p.vpp > 1:
            held = min(p.pp * (1 + (p.pp - 1) / (p.pp * p.vpp)), m)
        ends = head_activations_B(self.workload.shape, s) if p.pp == 1 else 0.0
        return states + each * held + ends

    def fits(self, p: Parallelism) -> bool:
        return self.memory_B(p) <= min(d.memory_B for d in self.cluster.devices)

    def _time(self, kernels: tuple[Kernel, ...]) -> float:
        """On the slowest device, which all others wait for."""
        if kernels not in self._kernels:
            op = Compute(group="", kernels=kernels)
            self._kernels[kernels] = max(self.cost.compute(op, d).seconds for d in self.cluster.devices)
        return self._kernels[kernels]

    def _passes(self, p: Parallelism) -> tuple[float, float, float]:
        """Seconds of a layer forward and backward with its tensor- and context-parallel collectives, and of both ends."""
        key = (p.tp, p.cp, p.microbatch, p.recompute, p.sequence_parallel)
        if key not in self._layers:
            shape, s = self.workload.shape, p.part(self.workload)
            forward = self._time(layer(shape, s)) + 2 * self._tensor(p, s) + self._context(p, s)
            again = 2 * self._tensor(p, s) if p.recompute == "full" else 0.0
            backward = self._time(layer(shape, s, backward=True, recompute=p.recompute))
            backward += 2 * self._tensor(p, s) + again + self._context(p, s)
            ends = self._time(
                embed(shape, s) + head(shape, s) + head(shape, s, backward=True) + embed(shape, s, backward=True)
            )
            self._layers[key] = (forward, backward, ends)
        return self._layers[key]

    def _collective(self, kind: CollectiveKind, size: float, stride: int, count: int, dtype: str) -> float:
        """Seconds among `count` ranks that lie `stride` apart."""
        if count == 1:
            return 0.0
        key = (kind, round(size), stride, count, dtype)
        if key not in self._moved:
            op = Collective(kind=kind, group="", along=(), nbytes=round(size), dtype=dtype)
            members = (np.arange(count) * stride)[None]
            demand = self.cost.demands(op, members)[0]
            self._moved[key] = demand.latency_s + demand.volume_B / demand.cap_B_per_s
        return self._moved[key]

    def _tensor(self, p: Parallelism, s: Slice) -> float:
        size = s.rows * self.workload.shape.hidden * WIDTH_B[s.element]
        return self._collective("all_reduce", size, 1, p.tp, s.element)

    def _context(self, p: Parallelism, s: Slice) -> float:
        shape = self.workload.shape
        size = 2 * s.rows * p.cp * max(shape.kv_dim / p.tp, shape.head_dim) * WIDTH_B[s.element]
        return self._collective("all_gather", size, p.tp, p.cp, s.element)

    def _layer_weights(self, p: Parallelism) -> float:
        return self.workload.shape.layer_parameters / p.tp

    def _gather_layer(self, p: Parallelism) -> float:
        element = p.part(self.workload).element
        return self._collective("all_gather", self._layer_weights(p) * WIDTH_B[element], p.tp, p.shards, element)

    def _scatter_layer(self, p: Parallelism) -> float:
        dtype = self.workload.grad_precision
        return self._collective("reduce_scatter", self._layer_weights(p) * WIDTH_B[dtype], p.tp, p.shards, dtype)

    def _sends(self, p: Parallelism) -> float:
        """Activations there and gradients back between stages, for each chunk."""
        if p.pp == 1:
            return 0.0
        s = p.part(self.workload)
        size = s.rows * self.workload.shape.hidden * WIDTH_B[s.element] / (p.tp if p.sequence_parallel else 1)
        key = ("send", round(size), p.shards * p.tp)
        if key not in self._moved:
            demand = self.cost.demands(
                Transfer(source="", target="", nbytes=round(size)), np.array([[0, p.shards * p.tp]])
            )[0]
            self._moved[key] = demand.latency_s + demand.volume_B / demand.cap_B_per_s
        return 2 * p.vpp * self._moved[key] if p.vpp == 1 else 0.0  # interleaving sends while the other chunks compute

    def _epilogue(self, p: Parallelism, last_backward_s: float) -> float:
        """Gradients that are not hidden, the optimizer, and weights that are gathered again."""
        weights = stage_parameters(self.workload, p, 0)
        dtype, element = self.workload.grad_precision, p.part(self.workload).element
        step = self._time((kernel("adamw", element, params=max(round(weights / (p.shards if p.zero else 1)), 1)),))
        if p.zero >= 2 and p.pp == 1:
            return step
        kind: CollectiveKind = "reduce_scatter" if p.zero else "all_reduce"
        reduce = self._collective(kind, weights * WIDTH_B[dtype], p.tp, p.shards, dtype) if p.zero < 2 else 0.0
        hidden = last_backward_s * (1 - 1 / p.vpp) if p.overlap else 0.0
        gather = (
            self._collective("all_gather", weights * WIDTH_B[element], p.tp, p.shards, element)
            if p.zero in (1, 2)
            else 0.0
        )
        return max(reduce - hidden, 0.0) + step + gather
