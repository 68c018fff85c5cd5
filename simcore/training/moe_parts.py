"""Costs of parts of a transformer whose layers have experts instead of one MLP."""

from dataclasses import dataclass, replace

import numpy as np

from costmodels import memory
from costmodels.kernels import WIDTH_B
from costmodels.moe import (
    Experts,
    exchanged_B,
    expert_elements,
    expert_mlp,
    router_elements,
)
from costmodels.transformer import layer_elements
from costmodels.transformer_kernels import Work, mlp_block
from simcore.plan import Collective
from simcore.training.choice import Choice
from simcore.training.quick_parts import GROUP, SPENT, Parts


@dataclass(frozen=True)
class ExpertParts(Parts):
    """As `Parts`, for a model of which all but `experts.dense_layers` layers have experts, spread over `ep` ranks that follow each
    other. Layers are averaged; dispatch and combine are waited for."""

    experts: Experts | None = None

    def passes(self, choice: Choice) -> tuple[float, ...]:
        found = np.array(super().passes(choice)).reshape(-1, len(SPENT))
        layers = self.workload.model.layers
        share = max(1.0 - self._experts.dense_layers / layers, 0.0)
        exchange = self._exchange_s(choice)
        for i, forward in ((0, True), (1, False)):
            added = self._kinds(self._added(choice), choice, forward) - self._kinds(
                self._removed(choice), choice, forward
            )
            found[i, :4] = np.maximum(found[i, :4] + share * added[:4], 0.0)
            found[i, 4] += share * added[4]
            found[i, SPENT.index("after")] += share * exchange
        return tuple(found.reshape(-1).tolist())

    @property
    def _experts(self) -> Experts:
        assert self.experts is not None
        return self.experts

    def _kinds(self, work: Work, choice: Choice, forward: bool) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        again = work.forward if choice.recompute == "full" and not forward else ()
        kernels = work.forward if forward else again + work.backward
        return np.array([*self.kinds(kernels), float(sum(k.count for k in kernels))])

    def _added(self, choice: Choice) -> Work:
        """Experts, the shared expert, and projections of latent attention."""
        part, model = choice.slice(self.workload), self.workload.model
        work = expert_mlp(self._experts, model, part, self.ep)
        if self._experts.shared_ffn:
            work += mlp_block(replace(model, ffn=self._experts.shared_ffn), part, "none")
        return work

    def _removed(self, choice: Choice) -> Work:
        """The MLP of a dense layer."""
        return mlp_block(self.workload.model, choice.slice(self.workload), "none")

    def _exchange_s(self, choice: Choice) -> float:
        """Seconds of dispatch and combine of one pass."""
        if self.ep == 1:
            return 0.0
        part = choice.slice(self.workload)
        nbytes = int(exchanged_B(self._experts, self.workload.model, part))
        op = Collective(kind="all_to_all", group=GROUP, along=("dp",), nbytes=nbytes, dtype=part.dtype)
        demand = self.cost.demands(op, np.arange(min(self.ep, self.cluster.n_ranks))[None, :])[0]
        return 2 * (demand.latency_s + demand.volume_B / demand.cap_B_per_s)

    def elements(self, tp: int, pp: int) -> tuple[int, int, int, int]:
        """As `Parts.elements`, with the experts that one rank has."""
        layer, embed, head, _ = super().elements(tp, pp)
        model, experts = self.workload.model, self._experts
        narrow = replace(model, ffn=max(experts.shared_ffn, tp))
        plain = layer * layer_elements(narrow) // layer_elements(model) + router_elements(experts, model)
        share = 1.0 - experts.dense_layers / model.layers
        routed = expert_elements(experts, model, self.ep) * share
        return int(layer * (1 - share) + plain * share), embed, head, int(routed)

    def activations(self, choice: Choice) -> tuple[float, float, float, float]:
        """As `Parts.activations`; visits of routed experts keep what an MLP of their width keeps, and their inputs."""
        model, part, experts = self.workload.model, choice.slice(self.workload), self._experts
        share = 1.0 - experts.dense_layers / model.layers
        narrow = replace(model, ffn=max(experts.shared_ffn, part.tp))
        visits = WIDTH_B[part.dtype] * part.norm_rows * experts.per_token * (2 * model.hidden + 3 * experts.ffn)
        kept, again, head, whole = super().activations(choice)
        if choice.recompute == "full":
            return kept, again + visits, head, whole + visits
        own = memory.layer_activation_B(narrow, part, choice.recompute) + visits
        return kept * (1 - share) + own * share, again, head, whole
