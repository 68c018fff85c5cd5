"""From a choice of parallelism to a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from costmodels import memory
from costmodels.kernels import WIDTH_B
from simcore.cluster import Cluster
from simcore.draft import Draft
from simcore.errors import PlanError
from simcore.plan import Group, Plan
from simcore.training.choice import Choice, problems_of, stage_name
from simcore.training.chunk_sizes import ChunkSizes
from simcore.training.chunk_tasks import ENDS, ChunkWriter, tied_across_stages
from simcore.training.gradient_buckets import stage_buckets
from simcore.training.layer_sizes import LayerSizes
from simcore.training.layer_tasks import list_tasks, memory_B
from simcore.workloads.transformer_training import TransformerTraining

Memory = dict[str, dict[str, float]]


def training_plan(workload: TransformerTraining, choice: Choice, cluster: Cluster) -> Plan:
    """One iteration on all ranks of the cluster. Raises `PlanError` with everything that is wrong with the choice."""
    problems = problems_of(choice, workload, cluster.n_ranks)
    if problems:
        raise PlanError("this parallelism does not suit the workload and the cluster", problems)
    overhead = {"overhead": memory.OVERHEAD_B} if any(d.kind == "gpu" for d in cluster.devices) else {}
    if choice.detail == "layer":
        return _by_layer(workload, choice, overhead)
    return _by_chunk(workload, choice, overhead)


def _by_layer(workload: TransformerTraining, choice: Choice, overhead: Mapping[str, float]) -> Plan:
    sizes = LayerSizes(workload, choice)
    resident = memory_B(workload, choice, sizes)
    return _plan(
        workload, choice, list_tasks(workload, choice, sizes), {stage_name(0): sizes.buckets}, resident, overhead
    )


def _by_chunk(workload: TransformerTraining, choice: Choice, overhead: Mapping[str, float]) -> Plan:
    sizes = ChunkSizes(workload, choice)
    buckets = [stage_buckets(workload, choice, sizes, s) for s in range(choice.pp)]
    names = {stage_name(s): [list(b.names) for b in found] for s, found in enumerate(buckets)}
    resident = {stage_name(s): chunk_memory_B(workload, choice, sizes, s) for s in range(choice.pp)}
    draft = ChunkWriter(workload, choice, sizes, buckets).write()
    return _plan(workload, choice, draft, names, resident, overhead)


def _plan(
    workload: TransformerTraining,
    choice: Choice,
    draft: Draft,
    buckets: Mapping[str, Sequence[Sequence[str]]],
    resident: Memory,
    overhead: Mapping[str, float],
) -> Plan:
    groups = choice.groups()
    if choice.detail == "chunk" and tied_across_stages(workload, choice):
        groups[ENDS] = ends_group(choice)
    return Plan(
        name=f"training dp{choice.dp} tp{choice.tp} pp{choice.pp} cp{choice.cp}",
        n_ranks=choice.n_ranks,
        groups=groups,
        tasks=tuple(draft.tasks),
        decisions=choice.decisions(workload) | {"buckets": buckets},
        workload=workload.described(),
        memory_B={name: {**kinds, **overhead} for name, kinds in resident.items()},
    )


def ends_group(choice: Choice) -> Group:
    """First and last stage, which sum the gradients of a tied embedding."""
    each = choice.n_ranks // choice.pp
    stage = choice.groups()[stage_name(0)]
    return Group(axes=(("end", 2, (choice.pp - 1) * each), *stage.axes))


def chunk_memory_B(workload: TransformerTraining, choice: Choice, sizes: ChunkSizes, stage: int) -> dict[str, float]:
    """Resident memory of a rank of a stage by kind: states, and buffers that are as large as their largest use."""
    pieces = sizes.chunks[stage]
    elements = [sizes.elements(piece) for piece in pieces]
    kinds = asdict(
        memory.model_states(
            sum(elements),
            workload.precision,
            master_weights=choice.master_weights,
            zero=choice.zero,
            shards=choice.shards,
        )
    )
    parts = [sizes.elements(part) for piece in pieces for _, part in piece.split()]
    if choice.zero >= 2 and choice.shards > 1:
        width = WIDTH_B[memory.gradient_dtype(workload.precision, master_weights=choice.master_weights)]
        kinds["unreduced_gradients"] = width * _unreduced(choice, elements, parts)
    if choice.zero == 3 and choice.shards > 1:
        kinds["gathered_parameters"] = WIDTH_B[memory.storage_dtype(workload.precision)] * _two_largest(parts)
    if choice.recompute == "full":
        kinds["recomputation"] = memory.layer_activation_B(workload.model, sizes.slice, "none")
    return kinds


def _unreduced(choice: Choice, chunks: Sequence[int], parts: Sequence[int]) -> int:
    """Gradients that wait to be reduced: a chunk's while it sums microbatches, otherwise two pieces'; all without overlap."""
    if choice.zero == 2 and not choice.overlap:
        return sum(chunks)
    return max(chunks) if choice.zero == 2 and choice.vpp > 1 else _two_largest(parts)


def _two_largest(sizes: Sequence[int]) -> int:
    return sum(sorted(sizes)[-2:])
