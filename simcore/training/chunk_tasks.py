"""Plans with a task for each pass of a microbatch through a chunk of layers: for pipelines, context parallelism, large clusters.

    m3/s2c1/fwd, m3/s2c1/fwd/tp, m3/s2c1/fwd/send, ..., m3/s2c1/bwd, ..., grad/s2/bucket0, ..., optimizer/s2, param/s2/bucket0

Passes whose gradients are reduced while they are computed, and with ZeRO 3 all passes, go layer by layer: m3/s2c1/bwd/layer17.
"""

from collections.abc import Sequence

from costmodels.kernels import WIDTH_B
from costmodels.memory import gradient_dtype
from simcore.draft import Draft
from simcore.plan import Collective, Transfer
from simcore.training.choice import Choice, stage_name
from simcore.training.chunk_sizes import ChunkSizes, Piece, PieceOps
from simcore.training.gradient_buckets import Bucket
from simcore.training.ops import gather_parameters, optimizer, reduce_gradients
from simcore.training.schedule import Pass, pipeline_order
from simcore.workloads.transformer_training import TransformerTraining

ENDS = "ends"
"""Group of the first and the last stage, which share a tied embedding."""


class ChunkWriter:
    """Lists the tasks of all stages. `tails` holds for each stage the tasks that its next computation follows, `before` those
    that the last one followed, `reduced` those that its optimizer follows."""

    def __init__(
        self, workload: TransformerTraining, choice: Choice, sizes: ChunkSizes, buckets: Sequence[Sequence[Bucket]]
    ) -> None:
        self.workload, self.choice, self.sizes, self.buckets = workload, choice, sizes, buckets
        self.draft = Draft()
        self.tails: list[tuple[str, ...]] = [()] * choice.pp
        self.before: list[tuple[str, ...]] = [()] * choice.pp
        self.reduced: list[list[str]] = [[] for _ in range(choice.pp)]
        self.arrived: dict[tuple[bool, int, int], str] = {}
        self.fetched: dict[tuple[int, int], list[str]] = {}
        self.ops: dict[tuple[int, tuple[int, bool, bool], bool], tuple[PieceOps, float]] = {}
        self.sends: dict[tuple[int, bool], Transfer] = {}
        self.sharded = choice.zero == 3 and choice.shards > 1

    def write(self) -> Draft:
        """All tasks of one iteration."""
        choice, microbatches = self.choice, self.choice.microbatches(self.workload)
        if choice.overlap_param_gather:
            self._fetch_parameters()
        for stage, step in pipeline_order(choice.pp, choice.vpp, microbatches):
            self._pass(stage, step)
        for stage in range(choice.pp if not choice.overlap else 0):
            self._reduce(stage, self.buckets[stage], microbatches - 1)
        self._sum_tied_embeddings()
        for stage in range(choice.pp):
            self._finish(stage)
        return self.draft

    def _pass(self, stage: int, step: Pass) -> None:
        """One microbatch through one chunk, and on to the next stage."""
        whole = self.sizes.chunks[stage][step.chunk]
        at = f"m{step.microbatch}/s{stage}c{step.chunk}/{'fwd' if step.forward else 'bwd'}"
        virtual = step.chunk * self.choice.pp + stage
        waits = [self.arrived.pop((step.forward, step.microbatch, virtual), None)]
        if step.forward:
            waits += self.fetched.pop((stage, step.chunk), [])
        due = self._due(stage, step)
        if self.sharded or due:
            parts = whole.split()
            for name, part in parts if step.forward else reversed(parts):
                self._piece(stage, f"{at}/{name}", part, waits, forward=step.forward)
                self._reduce(stage, [b for b in due if b.closes == name], step.microbatch)
                waits = []
        else:
            self._piece(stage, at, whole, waits, forward=step.forward)
        self._send(stage, step, at, virtual)

    def _due(self, stage: int, step: Pass) -> list[Bucket]:
        """Buckets to reduce during a pass."""
        if step.forward or not self.choice.overlap:
            return []
        return [b for b in self.buckets[stage] if b.chunk == step.chunk and step.microbatch in b.microbatches]

    def _piece(self, stage: int, name: str, piece: Piece, waits: Sequence[str | None], *, forward: bool) -> None:
        """The tasks of one pass through a piece."""
        key = (stage, piece.kind, forward)
        if key not in self.ops:
            self.ops[key] = (self.sizes.ops(stage, piece, forward=forward), self.sizes.activation_B(piece))
        ops, held = self.ops[key]
        gathered = self._gather(stage, name, piece)
        start = self._line(name, ops.before, (*self.tails[stage], *waits, gathered))
        done = [self.draft.add(name, ops.compute, start, held if forward else -held)]
        beside = [self.draft.add(f"{name}/{n}", op, start) for n, op in ops.beside]
        if ops.core is not None:
            core = self.draft.add(f"{name}/attn", ops.core, done)
            beside += [self.draft.add(f"{name}/{n}", op, done) for n, op in ops.beside_core]
            done = [core]
        self.before[stage] = self.tails[stage]
        self.tails[stage] = tuple(t for t in self._line(name, ops.after, (*done, *beside)) if t)
        if self.sharded and not forward:
            op = reduce_gradients(stage_name(stage), self.sizes.elements(piece), self.workload, self.choice)
            self.reduced[stage].append(self.draft.add(f"{name}/reduce_scatter", op, self.tails[stage]))

    def _line(
        self, name: str, collectives: Sequence[tuple[str, Collective]], after: Sequence[str | None]
    ) -> tuple[str | None, ...]:
        """Collectives one after the other; what comes next waits for the result."""
        waits = tuple(after)
        for suffix, op in collectives:
            waits = (self.draft.add(f"{name}/{suffix}", op, waits),)
        return waits

    def _gather(self, stage: int, name: str, piece: Piece) -> str | None:
        """ZeRO 3's all-gather of a piece's parameters; with overlap it is under way while the piece before computes."""
        if not self.sharded:
            return None
        op = gather_parameters(stage_name(stage), self.sizes.elements(piece), self.workload, self.choice)
        after = self.before[stage] if self.choice.overlap else self.tails[stage]
        return self.draft.add(f"{name}/all_gather", op, after)

    def _send(self, stage: int, step: Pass, at: str, virtual: int) -> None:
        """Hidden states to the next virtual stage, or their gradients to the one before."""
        target = virtual + 1 if step.forward else virtual - 1
        if not 0 <= target < self.choice.pp * self.choice.vpp:
            return
        arrival = (step.forward, step.microbatch, target)
        if target % self.choice.pp == stage:
            self.arrived[arrival] = self.tails[stage][0]
            return
        key = (stage, step.forward)
        if key not in self.sends:
            source, to = stage_name(stage), stage_name(target % self.choice.pp)
            stream = f"{'fwd' if step.forward else 'bwd'} from {source}"
            self.sends[key] = Transfer(source=source, target=to, nbytes=self.sizes.boundary_B, stream=stream)
        self.arrived[arrival] = self.draft.add(f"{at}/send", self.sends[key], self.tails[stage])

    def _reduce(self, stage: int, buckets: Sequence[Bucket], microbatch: int) -> None:
        """Sum the gradients of some buckets over the replicas; ZeRO 2 does so before the last microbatch too."""
        for bucket in buckets:
            op = reduce_gradients(stage_name(stage), bucket.elements, self.workload, self.choice)
            early = "" if microbatch == bucket.microbatches[-1] else f"m{microbatch}/"
            name = f"{early}grad/s{stage}/bucket{bucket.number}"
            self.reduced[stage].append(self.draft.add(name, op, self.tails[stage]))

    def _sum_tied_embeddings(self) -> None:
        """First and last stage have the same embedding and sum its gradients."""
        if not tied_across_stages(self.workload, self.choice):
            return
        last = self.choice.pp - 1
        model = self.workload.model
        dtype = gradient_dtype(self.workload.precision, master_weights=self.choice.master_weights)
        nbytes = int(-(-model.vocab // self.choice.tp) * model.hidden * WIDTH_B[dtype])
        op = Collective(kind="all_reduce", group=ENDS, along=("end",), nbytes=nbytes, dtype=dtype, stream="grad")
        waits = (*self.tails[0], *self.tails[last], *self.reduced[0], *self.reduced[last])
        done = self.draft.add("grad/embedding", op, waits)
        self.reduced[0].append(done)
        self.reduced[last].append(done)

    def _finish(self, stage: int) -> None:
        """The optimizer, and with ZeRO 1 and 2 the gathering of what it wrote, unless the next iteration begins with it."""
        group = stage_name(stage)
        elements = sum(map(self.sizes.elements, self.sizes.chunks[stage]))
        step = optimizer(group, elements, self.workload, self.choice)
        done = self.draft.add(f"optimizer/s{stage}", step, (*self.tails[stage], *self.reduced[stage]))
        if self.choice.zero in (1, 2) and not self.choice.overlap_param_gather:
            for bucket in self.buckets[stage]:
                op = gather_parameters(group, bucket.elements, self.workload, self.choice)
                self.draft.add(f"param/s{stage}/bucket{bucket.number}", op, (done,))

    def _fetch_parameters(self) -> None:
        """Parameters that the optimizer of the iteration before wrote, chunk by chunk; a chunk's first pass waits for its own."""
        for stage, buckets in enumerate(self.buckets):
            for bucket in reversed(buckets):
                op = gather_parameters(stage_name(stage), bucket.elements, self.workload, self.choice)
                name = self.draft.add(f"param/s{stage}/bucket{bucket.number}", op)
                self.fetched.setdefault((stage, bucket.chunk), []).append(name)


def tied_across_stages(workload: TransformerTraining, choice: Choice) -> bool:
    """Whether the two ends of a tied model are on different stages."""
    return workload.model.tied_embeddings and choice.pp > 1
