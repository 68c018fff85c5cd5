"""Plans with a task for each layer, without pipeline: data parallelism with buckets, tensor parallelism, ZeRO.

This is what the real backend binds to modules. ZeRO 2 and 3 shard as torch's FSDP2 does: every layer is a unit, and embedding, last
norm and head together are the root unit; with ZeRO 2 parameters stay gathered until the end of the backward pass.
"""

from collections.abc import Iterable
from typing import Literal

from costmodels.kernels import WIDTH_B
from simcore.draft import Draft
from simcore.plan import Collective, Compute
from simcore.training.choice import Choice, stage_name
from simcore.training.layer_sizes import ATTENTION, EMBED, HEAD, LAYER, MLP, ROOT, LayerSizes, part_of
from simcore.training.ops import gather_parameters, optimizer, reduce_gradients
from simcore.workloads.transformer_training import TransformerTraining

Direction = Literal["fwd", "bwd"]
STAGE = stage_name(0)


def list_tasks(workload: TransformerTraining, choice: Choice, sizes: LayerSizes) -> Draft:
    """All tasks of one iteration."""
    writer = _Writer(workload, choice, sizes)
    microbatches = choice.microbatches(workload)
    for m in range(microbatches):
        writer.forward(m)
        writer.backward(m, last=m == microbatches - 1)
    writer.finish()
    return writer.draft


class _Writer:
    """Lists tasks as one rank runs them.

    `tail` is the last task of the chain that computing follows, `before_tail` the one before; `pending` holds for each bucket
    the gradients that it waits for, `reduced` the tasks that the optimizer waits for.
    """

    def __init__(self, workload: TransformerTraining, choice: Choice, sizes: LayerSizes) -> None:
        self.workload, self.choice, self.sizes = workload, choice, sizes
        self.layers = range(workload.model.layers)
        self.draft = Draft()
        self.tail: str | None = None
        self.before_tail: str | None = None
        self.pending = {b: set(map(part_of, names)) for b, names in enumerate(sizes.buckets)}
        self.reduced: list[str] = []
        self.sharded = choice.zero >= 2 and choice.shards > 1
        self.compute_ops: dict[tuple[str, Direction, bool], Compute] = {}
        self.gathers = {
            unit: gather_parameters(STAGE, sizes.elements[unit], workload, choice) for unit in (LAYER, ROOT)
        }
        self.scatters = {
            unit: reduce_gradients(STAGE, sizes.elements[unit], workload, choice) for unit in (LAYER, ROOT)
        }

    def forward(self, m: int) -> None:
        """Microbatch `m` from tokens to loss."""
        at = f"m{m}/fwd"
        gathered = self._gather(f"{at}/{ROOT}", ROOT)
        self._part(f"{at}/{EMBED}", EMBED, "fwd", m, gathered)
        for i in self.layers:
            gathered = self._gather(f"{at}/layer{i}", LAYER)
            self._layer(f"{at}/layer{i}", "fwd", m, gathered)
        self._part(f"{at}/{HEAD}", HEAD, "fwd", m)

    def backward(self, m: int, *, last: bool) -> None:
        """Microbatch `m` from loss to gradients; on the last one they are reduced as soon as their bucket is full."""
        at = f"m{m}/bwd"
        self._part(f"{at}/{HEAD}", HEAD, "bwd", m)
        self._reduce_ready([HEAD], last)
        for i in reversed(self.layers):
            gathered = self._gather(f"{at}/layer{i}", LAYER) if self.choice.zero == 3 else None
            self._layer(f"{at}/layer{i}", "bwd", m, gathered)
            self._scatter(f"{at}/layer{i}", LAYER)
            self._reduce_ready([f"{i}/{ATTENTION}", f"{i}/{MLP}"], last)
        self._part(f"{at}/{EMBED}", EMBED, "bwd", m)
        self._scatter(f"{at}/{ROOT}", ROOT)
        self._reduce_ready([EMBED], last)

    def finish(self) -> None:
        """The buckets that are left, the optimizer, and with ZeRO 1 the gathering of what it wrote."""
        for b in sorted(self.pending):
            self._reduce(b)
        step = optimizer(STAGE, self.sizes.total, self.workload, self.choice)
        self.draft.add("optimizer/s0", step, (self.tail, *self.reduced))
        if self.choice.zero == 1:
            for b, elements in enumerate(self.sizes.bucket_elements):
                gather = gather_parameters(STAGE, elements, self.workload, self.choice)
                self.draft.add(f"param/s0/bucket{b}", gather, ("optimizer/s0",))

    def _layer(self, name: str, direction: Direction, m: int, gathered: str | None) -> None:
        """One task, or with tensor parallelism attention and MLP, each followed by its all-reduce."""
        if self.choice.tp == 1:
            self._part(name, LAYER, direction, m, gathered)
            return
        for half in (ATTENTION, MLP) if direction == "fwd" else (MLP, ATTENTION):
            self._part(f"{name}/{half}", half, direction, m, gathered)
            self._follow(f"{name}/{half}/all_reduce", self.sizes.all_reduce)

    def _part(self, name: str, part: str, direction: Direction, m: int, gathered: str | None = None) -> None:
        """Kernels of one part. Activations are taken by the forward pass and given back by the backward pass."""
        accumulates = direction == "bwd" and m > 0
        key = (part, direction, accumulates)
        if key not in self.compute_ops:
            kernels = self.sizes.kernels(part, backward=direction == "bwd", accumulates=accumulates)
            self.compute_ops[key] = Compute(group=STAGE, kernels=kernels)
        held = self.sizes.activations[part]
        self._follow(name, self.compute_ops[key], gathered, held if direction == "fwd" else -held)

    def _follow(
        self, name: str, op: Compute | Collective, gathered: str | None = None, activation_B: float = 0.0
    ) -> None:
        """A task at the end of the chain."""
        self.before_tail, self.tail = self.tail, self.draft.add(name, op, (self.tail, gathered), activation_B)

    def _gather(self, name: str, unit: str) -> str | None:
        """All-gather of a unit's parameters; with overlap it is under way while the task before its first one computes."""
        if not self.sharded:
            return None
        ahead = self.choice.overlap and unit != ROOT
        return self.draft.add(f"{name}/all_gather", self.gathers[unit], (self.before_tail if ahead else self.tail,))

    def _scatter(self, name: str, unit: str) -> None:
        """Reduce-scatter of a unit's gradients; without overlap computing waits for it."""
        if not self.sharded:
            return
        done = self.draft.add(f"{name}/reduce_scatter", self.scatters[unit], (self.tail,))
        self.reduced.append(done)
        if not self.choice.overlap:
            self.before_tail, self.tail = self.tail, done

    def _reduce_ready(self, parts: Iterable[str], last: bool) -> None:
        """Reduce the buckets whose last gradients come from `parts`."""
        if not (last and self.choice.overlap):
            return
        for b in sorted(self.pending):
            self.pending[b].difference_update(parts)
            if not self.pending[b]:
                self._reduce(b)

    def _reduce(self, bucket: int) -> None:
        del self.pending[bucket]
        op = reduce_gradients(STAGE, self.sizes.bucket_elements[bucket], self.workload, self.choice)
        self.reduced.append(self.draft.add(f"grad/s0/bucket{bucket}", op, (self.tail,)))


def memory_B(workload: TransformerTraining, choice: Choice, sizes: LayerSizes) -> dict[str, dict[str, float]]:
    """Resident memory of every rank by kind.

    Gathered parameters: root and all layers with ZeRO 2, with ZeRO 3 root, the layer that computes and the one that is fetched.
    """
    kinds = sizes.states()
    if choice.zero >= 2 and choice.shards > 1:
        layers = workload.model.layers if choice.zero == 2 else min(workload.model.layers, 2)
        gathered = sizes.elements[ROOT] + layers * sizes.elements[LAYER]
        kinds["gathered_parameters"] = gathered * WIDTH_B[sizes.weight_dtype]
        kinds["weights"] = kinds["weights"] / (choice.shards if choice.zero == 2 else 1)
    if choice.recompute == "full":
        kinds["recomputation"] = sizes.recomputed_B
    return {STAGE: kinds}
